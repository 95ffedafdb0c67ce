"""What processes of ours answer over HTTP: a small application by WSGI, and a server for it."""

from bridge.endpoint.app import App, Request, Response, json_response
from bridge.endpoint.exposition import Exposition
from bridge.endpoint.reading import Reading
from bridge.endpoint.server import Server

__all__ = ["App", "Exposition", "Reading", "Request", "Response", "Server", "json_response"]

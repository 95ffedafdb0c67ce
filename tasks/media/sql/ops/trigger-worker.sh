#!/bin/sh
# Jobs are stuck in queued: tick and publish by hand, and say what stands. Needs BRIDGE_DATABASE_URL and BRIDGE_BROKER_URL.
set -eu

: "${BRIDGE_DATABASE_URL:?set it to the database with the jobs}"
# A checkout has the command in its .venv; elsewhere it goes through celery, because iproute2 owns another "bridge".
own="$(cd "$(dirname "$0")/../../../.." && pwd)/.venv/bin/bridge"
run() {
  if [ -x "$own" ]; then "$own" "$@"; else celery bridge "$@"; fi
}

run tick
run drain --once
run doctor || true   # it exits 1 when a check is red: that is what we came to see

"""What every test may ask for; the servers are in fix_servers.py."""

pytest_plugins = [
    "fix_folders",
    "fix_servers",
    "fix_sql",
    "fix_stack",
    "fix_proxy",
    "fix_calls",
    "fix_client",
    "fix_control",
    "fix_rabbitmq",
    "fix_redis",
    "fix_tls",
    "fix_flower",
    "fix_install",
    "fix_moving",
    "fix_pairs",
    "fix_standby",
    "fix_receiver",
    "fix_releases",
    "fix_transactions",
]

#!/bin/sh
# Healthy when the server takes the password and has finished loading its data.
set -eu
REDISCLI_AUTH=$(cat /run/secrets/redis_password)
export REDISCLI_AUTH
answer=$(redis-cli -h 127.0.0.1 ping)
[ "$answer" = PONG ] || {
    echo "$answer"
    exit 1
}

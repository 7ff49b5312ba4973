#!/bin/sh
# Becomes redis-server as the user redis. The password goes in on standard input: not on the command
# line, not in a file.
set -eu

readonly DATA=/var/lib/redis

fail() {
    printf 'redis: %s\n' "$1" >&2
    exit 1
}

[ "${1-}" = redis-server ] || exec "$@"

[ -r /run/secrets/redis_password ] || fail 'no secret redis_password (/run/secrets/redis_password)'
password=$(sed 's/[\\"]/\\&/g' /run/secrets/redis_password)
[ -n "$password" ] || fail 'the secret redis_password is empty'

# A volume may come empty and owned by root, or filled by an image in which redis had another id.
[ "$(stat -c %U "$DATA")" = redis ] || chown -R redis:redis "$DATA"

exec setpriv --reuid=redis --regid=redis --init-groups redis-server - <<CONF
include /etc/inception/redis.conf
requirepass "$password"
CONF

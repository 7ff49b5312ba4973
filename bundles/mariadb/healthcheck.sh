#!/bin/sh
# Healthy when the server lets the application's own user in over TCP.
set -eu
MYSQL_PWD=$(cat /run/secrets/mysql_password)
export MYSQL_PWD
exec mariadb --no-defaults --protocol=tcp --host=127.0.0.1 --user="$MYSQL_USER" \
    --connect-timeout=3 --batch --skip-column-names --execute='SELECT 1' "$MYSQL_DATABASE"

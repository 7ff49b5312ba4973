#!/bin/sh
# Makes the database on the first start, then becomes mariadbd. No server runs while the database is
# made (`--bootstrap` reads SQL from its standard input), so port 3306 opens once, for good.
set -eu

readonly DATA=/var/lib/mysql
readonly RUN=/run/mysqld
# Stands in the data directory while it is being made; what is found with it is half made.
readonly UNFINISHED=$DATA/.being-made

fail() {
    printf 'mariadb: %s\n' "$1" >&2
    exit 1
}

secret() {
    [ -r "/run/secrets/$1" ] || fail "no secret $1 (/run/secrets/$1)"
    cat "/run/secrets/$1"
}

# A string as an SQL literal.
quoted() {
    printf "'%s'" "$(printf %s "$1" | sed "s/[\\\\']/\\\\&/g")"
}

# Names go into SQL between backquotes; a plain set of characters keeps that simple.
check_name() {
    case $2 in
    '' | *[!A-Za-z0-9_]*) fail "$1 must be letters, digits and underscores, not \`$2\`" ;;
    esac
}

first_sql() {
    # In a GRANT, `_` in a database name stands for any character unless it is escaped.
    pattern=$(printf %s "$MYSQL_DATABASE" | sed 's/_/\\_/g')
    # Privileges are not in force under --bootstrap until they are loaded.
    cat <<SQL
FLUSH PRIVILEGES;
CREATE DATABASE \`$MYSQL_DATABASE\` CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci;
CREATE USER '$MYSQL_USER'@'%' IDENTIFIED BY $(quoted "$user_password");
GRANT ALL PRIVILEGES ON \`$pattern\`.* TO '$MYSQL_USER'@'%';
ALTER USER 'root'@'localhost' IDENTIFIED VIA unix_socket OR mysql_native_password USING PASSWORD($(quoted "$root_password"));
DELETE FROM mysql.proxies_priv WHERE Host <> 'localhost';
DELETE FROM mysql.global_priv WHERE User = '' OR (User = 'root' AND Host <> 'localhost');
FLUSH PRIVILEGES;
SQL
}

make_database() {
    check_name MYSQL_DATABASE "${MYSQL_DATABASE-}"
    check_name MYSQL_USER "${MYSQL_USER-}"
    user_password=$(secret mysql_password)
    root_password=$(secret mysql_root_password)

    echo "mariadb: first start, making database $MYSQL_DATABASE" >&2
    : > "$UNFINISHED"
    find "$DATA" -mindepth 1 ! -path "$UNFINISHED" -delete
    chown mysql:mysql "$UNFINISHED"
    (umask 077 && first_sql > "$RUN/first.sql")
    # Nothing is lost by a crash here: a half-made directory is thrown away. So no flushing to disk.
    if ! mariadb-install-db --defaults-file=/etc/inception/mariadb.cnf --user=mysql \
        --auth-root-authentication-method=socket --auth-root-socket-user=root \
        --skip-test-db --skip-name-resolve \
        --extra-file="$RUN/first.sql" \
        --innodb-flush-log-at-trx-commit=0 --innodb-flush-method=nosync \
        > "$RUN/first.log" 2>&1; then
        cat "$RUN/first.log" >&2
        rm -f "$RUN/first.sql"
        fail 'the database could not be made'
    fi
    rm -f "$RUN/first.sql" "$RUN/first.log"
    sync
    rm "$UNFINISHED"
}

[ "${1-}" = mariadbd ] || exec "$@"
shift

mkdir -p "$RUN"
chown mysql:mysql "$RUN"
# A volume may come empty and owned by root, or filled by an image in which mysql had another id.
[ "$(stat -c %U "$DATA")" = mysql ] || chown -R mysql:mysql "$DATA"

# `mysql/` is the server's own system database. Data of another making is used, never wiped.
if [ -e "$UNFINISHED" ] || [ ! -d "$DATA/mysql" ]; then
    [ -e "$UNFINISHED" ] || [ -z "$(find "$DATA" -mindepth 1 ! -name lost+found | head -n 1)" ] \
        || fail "$DATA holds files but no database; empty the volume or give another"
    make_database
fi

exec mariadbd --defaults-file=/etc/inception/mariadb.cnf "$@"

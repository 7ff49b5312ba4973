#!/bin/bash

# wp-cli would be downloaded here
PASSWORD="$(cat /run/secrets/db_password)"

until mysqladmin ping -h"$MYSQL_HOSTNAME" -u"$MYSQL_USER" -p"$PASSWORD" --silent; do
	echo "waiting for mariadb..."
	sleep 1
done

if [ ! -f wp-config.php ]; then
	cp /usr/local/share/tools/*.php .
	mv config.php wp-config.php
	sed -i "s|database_name_here|$MYSQL_DATABASE|; s|username_here|$MYSQL_USER|; s|password_here|$PASSWORD|; s|localhost|$MYSQL_HOSTNAME|" wp-config.php
	php install.php "$WP_TITLE" "$WP_ADMIN_USER" "$WP_ADMIN_PASSWORD" "$WP_ADMIN_EMAIL"
	chown -R www-data:www-data .
fi

exec "$@"

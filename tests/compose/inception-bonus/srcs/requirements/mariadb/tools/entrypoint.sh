#!/bin/bash
set -eo pipefail
if [ ! -f /var/lib/mysql/.done ]; then
	mariadb-install-db --datadir=/var/lib/mysql --skip-test-db >/dev/null
	cat >/tmp/init.sql <<-SQL
		CREATE DATABASE IF NOT EXISTS $MYSQL_DATABASE;
		CREATE USER '$MYSQL_USER'@'%' IDENTIFIED BY '$MYSQL_PASSWORD';
		GRANT ALL ON $MYSQL_DATABASE.* TO '$MYSQL_USER'@'%' WITH GRANT OPTION;
		ALTER USER root@localhost IDENTIFIED BY '$MYSQL_ROOT_PASSWORD';
		FLUSH PRIVILEGES;
	SQL
	touch /var/lib/mysql/.done
	exec mariadbd --init-file=/tmp/init.sql
fi
exec mariadbd

#!/bin/bash
if ! id "$FTP_USER" >/dev/null 2>&1; then
    adduser --no-create-home --disabled-password --gecos "" --home /home/ftpuser $FTP_USER
    echo "$FTP_USER:$FTP_PASS" | chpasswd
    # shares the files of php-fpm
    usermod -aG www-data $FTP_USER
    chown $FTP_USER /home/ftpuser
    echo "pasv_address=$PASV_ADDRESS" >> /etc/vsftpd.conf
fi
exec /usr/sbin/vsftpd /etc/vsftpd.conf

#!/bin/sh
# Makes the one FTP user (an alias of www-data, so that uploads belong to the site) and, on the first
# start, the certificate; then becomes vsftpd.
set -eu

readonly TLS=/etc/vsftpd/tls
readonly ROOT=/var/www/html

fail() {
    printf 'ftp: %s\n' "$1" >&2
    exit 1
}

make_certificate() {
    echo 'ftp: making a certificate' >&2
    (
        umask 077
        openssl req -x509 -newkey rsa:2048 -nodes -sha256 -days 825 \
            -subj "/CN=${DOMAIN_NAME:-localhost}" -addext "subjectAltName=DNS:${DOMAIN_NAME:-localhost}" \
            -keyout "$TLS/key.pem.new" -out "$TLS/certificate.pem.new" 2> "$TLS/openssl.log"
    ) || {
        cat "$TLS/openssl.log" >&2
        fail 'the certificate could not be made'
    }
    rm -f "$TLS/openssl.log"
    mv "$TLS/key.pem.new" "$TLS/key.pem"
    mv "$TLS/certificate.pem.new" "$TLS/certificate.pem"
}

make_user() {
    case ${FTP_USER-} in
    '' | [!a-z_]* | *[!a-z0-9_-]*) fail "FTP_USER must be a plain lower-case user name, not \`${FTP_USER-}\`" ;;
    esac
    [ -r /run/secrets/ftp_password ] || fail 'no secret ftp_password (/run/secrets/ftp_password)'
    ids=$(id -u www-data):$(id -g www-data)
    # /usr/sbin/nologin on Debian, /sbin/nologin on Alpine.
    shell=$(command -v nologin)
    line="$FTP_USER:x:$ids:FTP:$ROOT:$shell"
    if ! grep -qxF "$line" /etc/passwd; then
        ! grep -q "^$FTP_USER:" /etc/passwd || fail "FTP_USER is a system user: \`$FTP_USER\`"
        echo "$line" >> /etc/passwd
        echo "$FTP_USER:!:::::::" >> /etc/shadow
    fi
    # On standard input: a command line can be read by others.
    said=$(printf '%s:%s\n' "$FTP_USER" "$(cat /run/secrets/ftp_password)" | chpasswd -c SHA512 2>&1) \
        || fail "the password could not be set: $said"
}

[ "${1-}" = vsftpd ] || exec "$@"

make_user
mkdir -p /run/vsftpd/empty
echo "$FTP_USER" > /run/vsftpd/users
# Replicas have one volume for it: one of them makes it, and the others wait.
exec 9> "$TLS/lock"
flock 9
if [ ! -s "$TLS/certificate.pem" ] || [ ! -s "$TLS/key.pem" ]; then
    make_certificate
fi
exec 9>&-

# A session's own standard output is its connection, so the log is the one of this process, which
# becomes the server. Passive mode must announce an address and ports which lead to this very replica.
passive=${INCEPTION_FTP_PASSIVE:-21100-21110}
{
    cat /etc/inception/vsftpd.conf
    echo "pasv_address=${INCEPTION_FTP_ADDRESS:-${PASV_ADDRESS:-127.0.0.1}}"
    echo "pasv_min_port=${passive%-*}"
    echo "pasv_max_port=${passive#*-}"
    echo "xferlog_file=/proc/$$/fd/1"
} > /run/vsftpd/vsftpd.conf

# A server of its own for IPv6, where there is an address of it that is not of the link only: one socket for both
# would announce 0.0.0.0 to clients of IPv4. When it ends so does the other, whose child it is.
address6=$(awk '$4 == "00" { gsub(/..../, "&:", $1); sub(/:$/, "", $1); print $1; exit }' /proc/net/if_inet6 2> /dev/null) || true
if [ -n "$address6" ]; then
    vsftpd /run/vsftpd/vsftpd.conf -olisten=NO -olisten_ipv6=YES "-olisten_address6=$address6" &
fi

# vsftpd counts its children and dies of one that it does not know: as PID 1 it would inherit some with
# every session. The shell takes that place where there is no init.
if [ $$ -eq 1 ]; then
    vsftpd /run/vsftpd/vsftpd.conf &
    trap 'kill -TERM $!' TERM INT
    wait $! && status=0 || status=$?
    exit "$status"
fi
exec vsftpd /run/vsftpd/vsftpd.conf

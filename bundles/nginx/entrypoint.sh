#!/bin/sh
# Makes the certificate when there is none for DOMAIN_NAME, then becomes nginx.
set -eu

readonly TLS=/etc/nginx/tls

fail() {
    printf 'nginx: %s\n' "$1" >&2
    exit 1
}

make_certificate() {
    echo "nginx: making a certificate for $DOMAIN_NAME" >&2
    case $DOMAIN_NAME in
    localhost) names=DNS:localhost,IP:127.0.0.1 ;;
    *[!0-9.]*) names=DNS:$DOMAIN_NAME,DNS:localhost,IP:127.0.0.1 ;;
    *) names=IP:$DOMAIN_NAME,DNS:localhost,IP:127.0.0.1 ;;
    esac
    (
        umask 077
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 -days 825 \
            -subj "/CN=$DOMAIN_NAME" -addext "subjectAltName=$names" \
            -addext 'extendedKeyUsage=serverAuth' \
            -keyout "$TLS/key.pem.new" -out "$TLS/certificate.pem.new" 2> "$TLS/openssl.log"
    ) || {
        cat "$TLS/openssl.log" >&2
        fail 'the certificate could not be made'
    }
    rm -f "$TLS/openssl.log"
    mv "$TLS/key.pem.new" "$TLS/key.pem"
    mv "$TLS/certificate.pem.new" "$TLS/certificate.pem"
    # Last: what it names is complete.
    printf '%s\n' "$DOMAIN_NAME" > "$TLS/domain"
}

[ "${1-}" = nginx ] || exec "$@"
shift

case ${DOMAIN_NAME:=localhost} in
*[!A-Za-z0-9.-]*) fail "DOMAIN_NAME is no host name: \`$DOMAIN_NAME\`" ;;
esac

made_for=
[ ! -r "$TLS/domain" ] || read -r made_for < "$TLS/domain"
# 30 days before its end, a certificate is replaced.
if [ "$made_for" != "$DOMAIN_NAME" ] \
    || ! openssl x509 -in "$TLS/certificate.pem" -noout -checkend 2592000 > /dev/null 2>&1; then
    make_certificate
fi

mkdir -p /run/nginx
exec nginx -e stderr -g 'daemon off;' "$@"

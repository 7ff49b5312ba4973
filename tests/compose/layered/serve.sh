#!/bin/sh
while read -r line; do [ "$line" = "$(printf '\r')" ] && break; done
printf "HTTP/1.0 200 OK\r\n\r\n%s %s %s: " "$BUILT_FOR" "$MODE" "${FROM_BASE-none}"
cat /www/index.html

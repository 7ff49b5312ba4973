#!/usr/bin/env bash
set -euo pipefail
for t in /etc/nginx/templates/*.template; do
  sed "s|\${UPSTREAM}|$UPSTREAM|g" "$t" > "/etc/nginx/conf.d/$(basename "${t%.template}")"
done
rm -f /etc/nginx/sites-enabled/default
exec "$@"

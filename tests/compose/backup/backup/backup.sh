#!/bin/sh
set -eu
until [ -s /data/journal ]; do sleep 0.1; done
name="/backups/$(date +%Y%m%d-%H%M%S).tar.gz"
tar -C /data -czf "$name" .
ls -1t /backups/*.tar.gz | tail -n +"$((KEEP + 1))" | xargs -r rm --
cp "$name" /backups/latest.tar.gz
echo "backup: $name"

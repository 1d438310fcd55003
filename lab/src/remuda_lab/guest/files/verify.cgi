#!/bin/busybox sh
# What the disk itself holds. The page cache travels with the guest's memory, so a migrated guest would answer
# from it even if its disk had been lost on the way: drop it first.
sync
echo 3 > /proc/sys/vm/drop_caches
read -r tick < /data/tick
read -r boots < /data/boots
read -r expected _ < /data/payload.sha256
set -- $(sha256sum /data/payload)
printf 'Content-Type: application/json\r\nCache-Control: no-store\r\n\r\n'
echo "{\"disk_tick\":${tick:-0},\"boots\":${boots:-0},\"payload_sha256\":\"$1\",\"payload_expected\":\"$expected\"}"

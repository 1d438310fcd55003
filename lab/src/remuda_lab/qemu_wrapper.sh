#!/bin/sh
# Stands before QEMU on the lab's hosts. Guests without KVM get 64 KiB more memory than libvirt asked for.
#
# Before version 9.0 QEMU loses writes of a TCG guest that is being migrated, and the guest dies at the target
# although everybody reports success: after a look at the dirty bitmap the guest's cached page translations are
# not told to report the next write (fixed by QEMU's commit 03bfc2188f, "physmem: Fix migration dirty bitmap
# coherency with TCG memory access"). Only the look at 64 pages at once forgets that. It is taken where the
# memory's size is a multiple of 256 KiB, and libvirt rounds every size up to a whole MiB.
real=/run/remuda-lab/bin/qemu-system-x86_64
more=65536

case " $* " in
*" -accel tcg"*) ;;
*) exec "$real" "$@" ;;
esac

left=$#
before=
while [ "$left" -gt 0 ]; do
    word=$1
    shift
    left=$((left - 1))
    case $before:$word in
    -m:*[!0-9]*) ;; # sizes with units belong to guests with memory slots, whose blocks have other names
    -m:*) word=$((word * 1024 + more / 1024))k ;;
    -object:*'"id":"pc.ram"'*'"size":'*)
        rest=${word##*'"size":'}
        size=${rest%%[!0-9]*}
        word="${word%%'"size":'*}\"size\":$((size + more))${rest#"$size"}"
        ;;
    esac
    set -- "$@" "$word"
    before=$word
done
exec "$real" "$@"

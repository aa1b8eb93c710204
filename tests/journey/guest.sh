#!/usr/bin/env bash
# A tiny real Linux guest: Debian's cloud kernel, busybox, ext4 root. It boots under TCG in about 6 s on a quiet machine.
#   guest.sh kernel DIR         fetch and unpack the kernel package into DIR (nothing is installed), unless it is there
#   guest.sh initrd DIR OUT     initrd that mounts /dev/vda and goes on there
#   guest.sh client DIR OUT     initrd that has no disk: it attaches "nbd=PORT/EXPORT" of the kernel's command line with the kernel's own
#                               NBD client, mounts it, checks /data, fills /written, syncs, and prints "COFFER-NBD-SYNCED dataok=yes"
#                               on the serial port; then waits for its death if the line says "stay", else unmounts, detaches,
#                               prints "COFFER-NBD-ENDED" and powers off
#   guest.sh brief OUT SIZE     ext4 root file system: its init checks the md5 sums in /data, appends to /var/boots, prints
#                               "COFFER-BOOT-OK boots=N dataok=yes" on the serial port and powers off
#   guest.sh busy OUT SIZE      the same, but its init adds a number to /var/ticks every second, syncs and prints "COFFER-TICK N", until
#                               it gets a line on the serial port: then it prints "COFFER-STOP ticks=N" and powers off
# Needs: busybox-static cpio kmod e2fsprogs nbd-client, and root for device nodes.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Busybox under all its names in $work/bin, and the rest of a root directory.
make_tree() {
    local name
    mkdir -p "$work"/{bin,sbin,dev,proc,sys,etc,var,tmp,data,modules,newroot}
    cp /bin/busybox "$work/bin/"
    for name in $(/bin/busybox --list); do [ "$name" = busybox ] || ln -sf busybox "$work/bin/$name"; done
    mknod -m 600 "$work/dev/console" c 5 1
}

make_kernel() {
    local folder version
    folder=$(realpath -m "$1")
    [ ! -e "$folder/vmlinuz" ] || return 0
    version=$(apt-cache depends linux-image-cloud-amd64 |
        awk '/Depends: linux-image-.*cloud-amd64/ { sub("linux-image-", "", $2); print $2; exit }')
    [ -n "$version" ] || { echo 'apt knows no linux-image-cloud-amd64: apt-get update' >&2; exit 1; }
    # apt fetches as a user of its own where it may.
    chmod 755 "$work"
    (cd "$work" && apt-get download "linux-image-$version" >&2)
    dpkg-deb -x "$work"/linux-image-*.deb "$work/unpacked"
    depmod -b "$work/unpacked" "$version"
    rm -rf "$folder"
    mkdir -p "$folder"
    mv "$work/unpacked/lib" "$folder/lib"
    # Last: whoever sees it finds the modules too.
    mv "$work/unpacked/boot/vmlinuz-$version" "$folder/vmlinuz"
}

# add_modules DIR NAME.. - modules and what they need, in the order in which they load
add_modules() {
    local folder=$1 number=100 module
    shift
    while read -r module; do
        cp "$module" "$work/modules/$number-$(basename "$module")"
        number=$((number + 1))
    done < <(
        for module in "$@"; do
            modprobe -d "$folder" -S "$(ls "$folder/lib/modules")" --show-depends "$module"
        done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }'
    )
}

# add_program FILE - with the libraries that it needs
add_program() {
    local library
    cp "$1" "$work/bin/"
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$work$(dirname "$library")"
        cp -L "$library" "$work$library"
    done
}

pack() { (cd "$work" && find . | cpio -o -H newc --quiet | gzip -1) >"$1"; }

make_client() {
    local out
    out=$(realpath -m "$2")
    make_tree
    add_modules "$1" virtio_pci virtio_net nbd ext4
    add_program /usr/sbin/nbd-client
    cat >"$work/init" <<'INIT'
#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*; do insmod "$module"; done
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
fail() { echo "COFFER-NBD-FAILED $*" >/dev/console; reboot -f; }
where=$(sed 's/.*nbd=\([^ ]*\).*/\1/' /proc/cmdline)
nbd-client 10.0.2.2 "${where%%/*}" -N "${where#*/}" /dev/nbd0 || fail attach
mount -t ext4 /dev/nbd0 /newroot || fail mount
cd /newroot/data && md5sum -c SUMS >/dev/null 2>&1 && dataok=yes || dataok=no
cd /
yes coffer | head -c 3000000 >/newroot/written || fail write
sync
echo "COFFER-NBD-SYNCED dataok=$dataok" >/dev/console
grep -q stay /proc/cmdline && sleep 1000000
umount /newroot || fail umount
nbd-client -d /dev/nbd0 || fail detach
echo COFFER-NBD-ENDED >/dev/console
reboot -f
INIT
    chmod +x "$work/init"
    pack "$out"
}

make_initrd() {
    local out
    out=$(realpath -m "$2")
    make_tree
    add_modules "$1" virtio_pci virtio_blk ext4
    cat >"$work/init" <<'INIT'
#!/bin/sh
mount -t devtmpfs dev /dev
for module in /modules/*; do insmod "$module"; done
mount -t ext4 /dev/vda /newroot || { echo COFFER-MOUNT-FAILED; reboot -f; }
exec switch_root /newroot /sbin/init
INIT
    chmod +x "$work/init"
    pack "$out"
}

make_root() {
    local guest_is=$1 out=$2 size=$3 number
    make_tree
    for number in 1 2 3 4; do head -c 1048576 /dev/urandom >"$work/data/f$number"; done
    (cd "$work/data" && md5sum f* >SUMS)
    "${guest_is}_init" >"$work/sbin/init"
    chmod +x "$work/sbin/init"
    rm -f "$out"
    truncate -s "$size" "$out"
    mke2fs -q -t ext4 -F -d "$work" "$out"
}

brief_init() {
    cat <<'INIT'
#!/bin/sh
mount -t devtmpfs dev /dev
mount -o remount,rw /
echo boot >>/var/boots
sync
cd /data && md5sum -c SUMS >/dev/null 2>&1 && dataok=yes || dataok=no
echo "COFFER-BOOT-OK boots=$(wc -l </var/boots) dataok=$dataok" >/dev/console
cd /
mount -o remount,ro /
reboot -f
INIT
}

busy_init() {
    cat <<'INIT'
#!/bin/sh
mount -t devtmpfs dev /dev
mount -o remount,rw /
exec 3</dev/ttyS0
number=0
until read -r -t 1 line <&3; do
    number=$((number + 1))
    echo "$number" >>/var/ticks
    head -c 300000 /dev/urandom >"/var/noise$((number % 8))"
    sync
    echo "COFFER-TICK $number" >/dev/console
done
cd /
mount -o remount,ro /
echo "COFFER-STOP ticks=$number" >/dev/console
reboot -f
INIT
}

case "${1:-} $#" in
'kernel 2') make_kernel "$2" ;;
'initrd 3') make_initrd "$2" "$3" ;;
'client 3') make_client "$2" "$3" ;;
'brief 3' | 'busy 3') make_root "$1" "$2" "$3" ;;
*)
    sed -n '2,13p' "$0" >&2
    exit 2
    ;;
esac

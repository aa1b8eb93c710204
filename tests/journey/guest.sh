#!/usr/bin/env bash
# A tiny real Linux guest: Debian's cloud kernel, busybox, ext4 root. It boots under TCG in about 6 s on a quiet machine.
#   guest.sh kernel DIR         fetch and unpack the kernel package into DIR (nothing is installed), unless it is there
#   guest.sh initrd DIR OUT     initrd that mounts /dev/vda and goes on there
#   guest.sh client DIR OUT     initrd that has no disk: it attaches "nbd=PORT/EXPORT" of the kernel's command line with the kernel's own
#                               NBD client, mounts it, checks /data, fills /written, syncs, and prints "COFFER-NBD-SYNCED dataok=yes"
#                               on the serial port; then waits for its death if the line says "stay", else unmounts, detaches,
#                               prints "COFFER-NBD-ENDED" and powers off
#   guest.sh initiator DIR      fetch and unpack open-iscsi's package and its own libraries into DIR (nothing is installed), unless they
#                               are there
#   guest.sh iscsi DIR DIR2 OUT initrd that has no disk: with the kernel's own initiator and open-iscsi's programs it attaches disk 0 of
#                               "target=IQN port=PORT" of the kernel's command line. It is iqn.2026-01.test:guest, proves by CHAP to be
#                               "guest" (secret-of-the-guest), and unless the line says "oneway" has the target prove to be "disk"
#                               (secret-of-the-disk). It prints "COFFER-ISCSI-.." on the serial port: "CHAP HOW yes" or "no" for
#                               each way to log in, then "SYNCED dataok=yes digests=1,1" after it has mounted the disk, checked
#                               /data, filled /written, and filled, removed and trimmed another file; "TICK N" whenever it has synced
#                               another line of /ticks, until it gets a line on the serial port: then it unmounts, logs out,
#                               prints "ENDED" and powers off
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

# fetch PACKAGE.. - unpacks them into $work/unpacked
fetch() {
    local package
    # apt fetches as a user of its own where it may.
    chmod 755 "$work"
    (cd "$work" && apt-get download "$@" >&2)
    for package in "$work"/*.deb; do dpkg-deb -x "$package" "$work/unpacked"; done
}

make_kernel() {
    local folder version
    folder=$(realpath -m "$1")
    [ ! -e "$folder/vmlinuz" ] || return 0
    version=$(apt-cache depends linux-image-cloud-amd64 |
        awk '/Depends: linux-image-.*cloud-amd64/ { sub("linux-image-", "", $2); print $2; exit }')
    [ -n "$version" ] || { echo 'apt knows no linux-image-cloud-amd64: apt-get update' >&2; exit 1; }
    fetch "linux-image-$version"
    depmod -b "$work/unpacked" "$version"
    rm -rf "$folder"
    mkdir -p "$folder"
    mv "$work/unpacked/lib" "$folder/lib"
    # Last: whoever sees it finds the modules too.
    mv "$work/unpacked/boot/vmlinuz-$version" "$folder/vmlinuz"
}

make_initiator() {
    local folder
    folder=$(realpath -m "$1")
    [ ! -e "$folder/sbin" ] || return 0
    fetch open-iscsi libopeniscsiusr libisns0
    rm -rf "$folder"
    mkdir -p "$folder"
    mv "$work/unpacked/usr" "$folder/usr"
    # Last: whoever sees it finds the libraries too.
    mv "$work/unpacked/sbin" "$folder/sbin"
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

# add_program FILE [ROOT] - with the libraries that it needs, of which some may lie below ROOT
add_program() {
    local root=${2:-} libraries library
    cp "$1" "$work/bin/"
    libraries=$(LD_LIBRARY_PATH=$root/usr/lib/$(uname -m)-linux-gnu ldd "$1")
    [[ $libraries != *'not found'* ]] || { echo "$1: $libraries" >&2; exit 1; }
    grep -o '/[^ ]*' <<<"$libraries" | while read -r library; do
        mkdir -p "$work$(dirname "${library#"$root"}")"
        cp -L "$library" "$work${library#"$root"}"
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

make_iscsi() {
    local initiator out
    initiator=$(realpath "$2")
    out=$(realpath -m "$3")
    make_tree
    add_modules "$1" virtio_pci virtio_net iscsi_tcp sd_mod crc32c_generic ext4
    add_program "$initiator/sbin/iscsid" "$initiator"
    add_program "$initiator/sbin/iscsiadm" "$initiator"
    mkdir -p "$work/etc/iscsi" "$work/run"
    # The two programs tell each other who they are.
    echo root:x:0:0:root:/:/bin/sh >"$work/etc/passwd"
    echo InitiatorName=iqn.2026-01.test:guest >"$work/etc/iscsi/initiatorname.iscsi"
    cat >"$work/etc/iscsi/iscsid.conf" <<'CONF'
node.session.initial_login_retry_max = 1
node.session.auth.authmethod = CHAP
node.session.auth.username = guest
node.session.auth.password = secret-of-the-guest
node.conn[0].iscsi.HeaderDigest = CRC32C
node.conn[0].iscsi.DataDigest = CRC32C
CONF
    cat >"$work/init" <<'INIT'
#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /run/lock/iscsi
for module in /modules/*; do insmod "$module"; done
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
say() { echo "COFFER-ISCSI-$*" >/dev/console; }
fail() { say "FAILED $*"; reboot -f; }
word() { sed "s/.* $1=\([^ ]*\).*/\1/" /proc/cmdline; }
node() { iscsiadm -m node -T "$(word target)" -p "10.0.2.2:$(word port)" "$@"; }
have() { node -o update -n "node.session.auth.$1" -v "$2" || fail "have $*"; }

iscsid || fail iscsid
node -o new || fail new
if ! grep -q oneway /proc/cmdline; then
    have username_in disk
    have password_in secret-of-the-disk
fi
# try HOW - says whether it is a way to log in
try() { if node --login; then say "CHAP $1 yes"; node --logout || fail logout; else say "CHAP $1 no"; fi; }
for algorithm in MD5 SHA1 SHA256 SHA3-256; do
    have chap_algs "$algorithm"
    try "$algorithm"
done
have password secret-of-nobody
try guessed
have password secret-of-the-guest
if ! grep -q oneway /proc/cmdline; then
    have password_in secret-of-another
    try deceived
    have password_in secret-of-the-disk
fi
have chap_algs SHA3-256,SHA256,SHA1,MD5
node --login || fail login
waited=0
until [ -b /dev/sda ]; do
    waited=$((waited + 1))
    [ "$waited" -le 600 ] || fail disk
    usleep 100000
done

mount -t ext4 /dev/sda /newroot || fail mount
cd /newroot/data && md5sum -c SUMS >/dev/null 2>&1 && dataok=yes || dataok=no
cd /
yes coffer | head -c 3000000 >/newroot/written || fail write
yes trimmings | head -c 8000000 >/newroot/removed && sync && rm /newroot/removed && sync || fail remove
fstrim /newroot || fail trim
sync
connection=/sys/class/iscsi_connection/$(ls /sys/class/iscsi_connection)
say "SYNCED dataok=$dataok digests=$(cat "$connection/header_digest"),$(cat "$connection/data_digest")"
exec 3</dev/ttyS0
number=0
until read -r -t 1 line <&3; do
    number=$((number + 1))
    echo "$number" >>/newroot/ticks || fail tick
    sync
    say "TICK $number"
done
umount /newroot || fail umount
node --logout || fail logout
say ENDED
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
'initiator 2') make_initiator "$2" ;;
'iscsi 4') make_iscsi "$2" "$3" "$4" ;;
'brief 3' | 'busy 3') make_root "$1" "$2" "$3" ;;
*)
    sed -n '2,23p' "$0" >&2
    exit 2
    ;;
esac

#!/usr/bin/env bash
# Makes the raw disk images that the benchmarks read, in the folder that is named, unless they lie there already:
#
#   A-gen0.raw  GPT + ext4: a Debian machine as first backed up, with photos, logs, a database and an archive
#   A-gen1.raw  the same disk a day later: security upgrade, packages purged, logs appended, 5 % of the database's pages
#               rewritten, photos deleted and added
#   B-gen0.raw  GPT + xfs: another machine with largely the same packages and its own data
#
# The payload is the same on every machine; the packages are those of the mirror on the day, so that figures are
# comparable only when taken on one build of the images. Needs root, loop devices, and the packages of `tests/setup.sh
# --bench`.
#
# Environment: BENCH_SIZE=small (default, about 0.9 GB of data a disk) or full (about 3.5 GB); TMPDIR for scratch
# files.
set -euo pipefail
out=${1:?usage: tests/bench/dataset.sh FOLDER}
case ${BENCH_SIZE:=small} in
small)
    disk=4G scale=1
    packages=python3,perl,git,vim,less,openssh-server,nginx-light,rsync,curl,ca-certificates,perl-doc,locales ;;
full)
    disk=8G scale=3
    packages=linux-image-amd64,python3,gcc,g++,make,perl,perl-doc,git,vim,less,man-db,openssh-server,nginx-light,rsync
    packages+=,curl,ca-certificates,openjdk-17-jre-headless,python3-numpy,postgresql,locales,sudo ;;
*)
    echo "dataset: BENCH_SIZE=$BENCH_SIZE: small or full" >&2
    exit 2 ;;
esac
seed=coffer-bench-1
recipe="$BENCH_SIZE $seed $(cat "$0" "$(dirname "$0")/payload.py" | sha256sum | cut -c1-16)"
if [ "$(cat "$out/RECIPE" 2>/dev/null)" = "$recipe" ]; then exit 0; fi

here=$(cd "$(dirname "$0")" && pwd)
suite=bookworm
# shellcheck disable=SC2016 # apt fills the names in
repository() { apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk -v r="$1" '$2 == r { print $1; exit }'; }
mirror=$(repository $suite)
security=$(repository $suite-security)
export LC_ALL=C DEBIAN_FRONTEND=noninteractive SOURCE_DATE_EPOCH=1750000000
mkdir -p "$out"
rm -f "$out/RECIPE"
work=$(mktemp -d) loop=
mnt=$work/mnt root=$work/root
mkdir "$mnt"

say() { printf 'dataset: %s\n' "$*" >&2; }

cleanup() {
    local status=$? point
    set +e
    for point in "$root"/{dev,sys,proc} "$mnt"/{dev,sys,proc} "$mnt"; do
        if mountpoint -q "$point"; then umount "$point"; fi
    done
    [ -z "$loop" ] || losetup -d "$loop"
    # Never through a mount that would not go away.
    rm -rf --one-file-system "$work"
    exit $status
}
trap cleanup EXIT

payload() { python3 "$here/payload.py" "$seed" "$@"; }

partition() { # IMAGE
    rm -f "$1"
    truncate -s "$disk" "$1"
    sgdisk -q -n1:2048:0 -t1:8300 "$1" >/dev/null
}

attach() { # IMAGE: its partition, as a loop device
    local sectors=$(($(stat -c %s "$1") / 512))
    loop=$(losetup -f --show -o $((2048 * 512)) --sizelimit $(((sectors - 4096) * 512)) "$1")
}

detach() {
    sync -f "$mnt"
    umount "$mnt"
    losetup -d "$loop"
    loop=
}

enter() { # ROOT: get it ready for apt
    mount -t proc proc "$1/proc"
    mount -t sysfs sys "$1/sys"
    mount --bind /dev "$1/dev"
    cp -L /etc/resolv.conf "$1/etc/resolv.conf"
    printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
    chmod +x "$1/usr/sbin/policy-rc.d"
    echo force-unsafe-io >"$1/etc/dpkg/dpkg.cfg.d/unsafe-io"
}

leave() { # ROOT
    chroot "$1" apt-get -qq clean
    rm -f "$1/usr/sbin/policy-rc.d" "$1/etc/resolv.conf"
    umount "$1/dev" "$1/sys" "$1/proc"
}

apt_in() { # ROOT ARGUMENT..
    local where=$1
    shift
    chroot "$where" apt-get -qq -y -o Dpkg::Use-Pty=0 "$@" >>"$work/apt.log" 2>&1 </dev/null ||
        { tail -20 "$work/apt.log" >&2; return 1; }
}

say "packages of Debian $suite ($BENCH_SIZE)"
debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$work/debootstrap.log" ||
    { tail -20 "$work/debootstrap.log" >&2; exit 1; }
echo "deb $mirror $suite main" >"$root/etc/apt/sources.list"
enter "$root"
apt_in "$root" update
apt_in "$root" --no-install-recommends install ${packages//,/ }
leave "$root"

say "A-gen0: ext4"
partition "$out/A-gen0.raw"
attach "$out/A-gen0.raw"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$loop"
mount "$loop" "$mnt"
cp -a "$root/." "$mnt/"
mkdir -p "$mnt"/srv/{db,log,mail,photos}
payload photos "$mnt/srv/photos" photo 1 $((60 * scale))
payload log "$mnt/srv/log/app.log" log0 $((40000000 * scale))
payload log "$mnt/srv/log/access.log" access0 $((20000000 * scale))
head -c $((13000000 * scale)) "$mnt/srv/log/app.log" | gzip -n >"$mnt/srv/log/app.log.1.gz"
payload db "$mnt/srv/db/main.db" db0 $((4096 * scale))
# The same content again at other offsets.
tar -C "$mnt/usr/share" -cf "$mnt/srv/mail/export.tar" --sort=name --mtime=@$SOURCE_DATE_EPOCH doc perl
detach

say "A-gen1: a day later"
cp --sparse=always "$out/A-gen0.raw" "$out/A-gen1.raw"
attach "$out/A-gen1.raw"
mount "$loop" "$mnt"
enter "$mnt"
[ -z "$security" ] || echo "deb $security $suite-security main" >>"$mnt/etc/apt/sources.list"
apt_in "$mnt" update
apt_in "$mnt" --with-new-pkgs upgrade
apt_in "$mnt" purge nginx-light perl-doc
leave "$mnt"
payload log "$mnt/srv/log/app.log" log1 $((5000000 * scale))
payload log "$mnt/srv/log/access.log" access1 $((2000000 * scale))
payload rewrite "$mnt/srv/db/main.db" rewrite1 50
rm -f "$mnt"/srv/photos/IMG_0001?.jpg
payload photos "$mnt/srv/photos" photo $((60 * scale + 1)) $((64 * scale))
detach

say "B-gen0: xfs"
partition "$out/B-gen0.raw"
attach "$out/B-gen0.raw"
mkfs.xfs -q -f "$loop"
mount "$loop" "$mnt"
cp -a "$root/." "$mnt/"
enter "$mnt"
apt_in "$mnt" --no-install-recommends install ruby
apt_in "$mnt" purge perl-doc
leave "$mnt"
mkdir -p "$mnt"/srv/{db,log,photos,photos-b}
payload photos "$mnt/srv/photos" photo $((20 * scale + 1)) $((40 * scale))
payload photos "$mnt/srv/photos-b" photo-b 1 $((30 * scale))
payload log "$mnt/srv/log/app.log" log-b $((27000000 * scale))
payload db "$mnt/srv/db/main.db" db-b $((4096 * scale))
detach

printf '%s\n' "$recipe" >"$out/RECIPE"
say "done: $out"

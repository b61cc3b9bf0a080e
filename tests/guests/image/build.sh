#!/bin/bash
# Builds a small Debian with all the DHCP clients of the table into a directory:
#
#	tree                                   its file system, for cheap guests
#	vmlinuz initrd.img cmdline disk.qcow2  the same as a machine's image
#
# No client starts by itself: a test starts the one that it is about, by Debian's
# own unit where there is one. exec.sh, which lets a test look inside, is the lab's.
set -euo pipefail
out=${1:?usage: build.sh DIRECTORY EXEC_SH PACKAGE...}
exec_sh=${2:?}
shift 2
here=$(cd "$(dirname "$0")" && pwd)
suite=bookworm
sources=
for f in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
	[ -n "$sources" ] || [ ! -s "$f" ] || sources=$f
done
[ -n "$sources" ] || { echo "this machine has no sources of Debian packages" >&2; exit 1; }
export LC_ALL=C DEBIAN_FRONTEND=noninteractive
root=$out/tree

# initramfs-tools comes with the kernel: the initrd below is smaller, so it makes none.
mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
	--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "5"' \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--dpkgopt=force-confold --dpkgopt=force-confdef \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools" && echo update_initramfs=no >"$1/etc/initramfs-tools/update-initramfs.conf"' \
	--include="$(IFS=,; echo "$*")" "$suite" "$root" "$sources"
kernel=$(basename "$(ls -d "$root"/lib/modules/*-cloud-amd64 | sort -V | tail -1)")
chroot "$root" depmod "$kernel"

echo clients >"$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n' >"$root/etc/hosts"
echo '/dev/vda / ext4 rw,noatime 0 0' >"$root/etc/fstab"
rm -f "$root/etc/resolv.conf"
: >"$root/etc/resolv.conf"
: >"$root/etc/machine-id"
rm -rf "$root"/etc/systemd/system/{multi-user,network-online,timers}.target.wants/* "$root"/boot/initrd* \
	"$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*
rm -f "$root/etc/systemd/system/sysinit.target.wants/systemd-pstore.service"

install -D -m 755 "$exec_sh" "$root/opt/lab/exec.sh"
mkdir -p "$root/opt/lab/bin" "$root/etc/systemd/system/multi-user.target.wants"
for tool in $("$root/bin/busybox" --list); do ln -sf /bin/busybox "$root/opt/lab/bin/$tool"; done
cat >"$root/etc/systemd/system/lab-exec.service" <<'UNIT'
[Unit]
Description=Shell for tests on the second serial port

[Service]
Environment=PATH=/usr/sbin:/usr/bin:/sbin:/bin:/opt/lab/bin
ExecStart=/bin/busybox sh /opt/lab/exec.sh
Restart=always
KillMode=process
UNIT
ln -sf ../lab-exec.service "$root/etc/systemd/system/multi-user.target.wants/"

initrd=$out/.initrd
mkdir -p "$initrd"/{bin,proc,sys,dev,newroot,modules}
cp "$root/bin/busybox" "$initrd/bin/"
install -m 755 "$here/init" "$initrd/init"
for m in virtio_pci virtio_blk virtio_net virtio_console crc32c_generic ext4; do
	modprobe -d "$root" -S "$kernel" --show-depends "$m" 2>/dev/null | awk '$1 == "insmod" { print $2 }'
done | awk '!seen[$0]++' | while read -r f; do
	cp "$f" "$initrd/modules/"
	basename "$f" >>"$initrd/modules/order"
done
(cd "$initrd" && find . -print0 | sort -z | cpio --null -o -H newc --quiet) | gzip -n >"$out/initrd.img"
rm -rf "$initrd"

cp "$root/boot/vmlinuz-$kernel" "$out/vmlinuz"
cp "$here/cmdline" "$out/"
used=$(du -sxm "$root" | cut -f1)
truncate -s "$((used + used / 4 + 200))M" "$out/disk.raw"
mke2fs -q -t ext4 -m 0 -L root -O ^metadata_csum,^has_journal -E lazy_itable_init=1 -d "$root" "$out/disk.raw"
qemu-img convert -f raw -O qcow2 "$out/disk.raw" "$out/disk.qcow2"
rm -f "$out/disk.raw"

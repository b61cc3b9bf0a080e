#!/bin/bash
# Builds the stock Debian guest into a directory, from Debian's own packages:
#
#	vmlinuz initrd.img cmdline disk.qcow2 image.json
#
# What is in it is what Debian's cloud images have: cloud-init, netplan and
# systemd-networkd, ISC's DHCP client for cloud-init, sshd. On top there is one unit
# that serves the second serial port (exec.sh), by which tests look inside, and
# what is slow under emulation and of no use is masked. cloud-init is untouched.
set -euo pipefail
out=${1:?usage: build.sh DIRECTORY}
here=$(cd "$(dirname "$0")" && pwd)
suite=${SUITE:-bookworm}
sources=${APT_SOURCES:-}
for f in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
	[ -n "$sources" ] || [ ! -s "$f" ] || sources=$f
done
[ -s "$sources" ] || { echo "no Debian package sources here: set APT_SOURCES to a file with some" >&2; exit 1; }
export LC_ALL=C DEBIAN_FRONTEND=noninteractive SOURCE_DATE_EPOCH=1735689600
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
root=$work/root

packages=systemd,systemd-sysv,udev,dbus,kmod,iproute2,netplan.io,isc-dhcp-client,netbase,tzdata
packages+=,libnss-myhostname,cloud-init,eatmydata,openssh-server,sudo,ca-certificates,linux-image-cloud-amd64,busybox-static,procps

# initramfs-tools comes with the kernel: the initrd below is smaller, so it makes none.
mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
	--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Retries "5"' \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
	--dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
	--dpkgopt=force-confdef --dpkgopt=force-confold \
	--essential-hook='mkdir -p "$1/etc/initramfs-tools" && echo update_initramfs=no >"$1/etc/initramfs-tools/update-initramfs.conf"' \
	--include="$packages" "$suite" "$root" "$sources"
kernel=$(basename "$(ls -d "$root"/lib/modules/*-cloud-amd64 | sort -V | tail -1)")
chroot "$root" depmod "$kernel"

echo debian >"$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost\n' >"$root/etc/hosts"
echo '/dev/vda / ext4 rw,noatime,errors=remount-ro 0 0' >"$root/etc/fstab"
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root"/etc/ssh/ssh_host_* "$root/etc/resolv.conf"
: >"$root/etc/resolv.conf"
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer \
	systemd-pstore.service systemd-timesyncd.service systemd-networkd-wait-online.service getty@tty1.service; do
	ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
ln -sf /lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\n' >"$root/etc/systemd/journald.conf.d/lab.conf"
# There is no tool for locales in the image; an RSA key takes 9 s to make under emulation.
printf 'locale: false\nssh_genkeytypes: [ed25519]\n' >"$root/etc/cloud/cloud.cfg.d/91-lab.cfg"
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/* "$root"/var/log/*.log "$root"/boot/initrd*

# The way in for tests.
install -D -m 755 "$here/../guest/exec.sh" "$root/opt/lab/exec.sh"
mkdir -p "$root/opt/lab/bin" "$root/etc/systemd/system/sysinit.target.wants"
for tool in $("$root/bin/busybox" --list); do ln -sf /bin/busybox "$root/opt/lab/bin/$tool"; done
ln -sf /usr/bin/systemctl /usr/bin/networkctl /usr/bin/cloud-init /usr/sbin/ip "$root/opt/lab/bin/"
install -m 644 "$here/lab-exec.service" "$root/etc/systemd/system/"
ln -sf ../lab-exec.service "$root/etc/systemd/system/sysinit.target.wants/"

# A .pyc that looks older than its source is made again at every start of a program, and
# one that is checked by its source's hash reads that: it took 15 s of a boot under emulation,
# and 5 s more. These are not looked at. netplan's have to be made: its directory isn't Python's.
chroot "$root" python3 -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.* /usr/share/netplan >/dev/null || true

initrd=$work/initrd
mkdir -p "$initrd"/{bin,proc,sys,dev,newroot,modules}
cp "$root/bin/busybox" "$initrd/bin/"
install -m 755 "$here/init" "$initrd/init"
for m in virtio_pci virtio_blk crc32c_generic ext4; do
	modprobe -d "$root" -S "$kernel" --show-depends "$m" 2>/dev/null | awk '$1 == "insmod" { print $2 }'
done | awk '!seen[$0]++' | while read -r f; do
	cp "$f" "$initrd/modules/"
	basename "$f" >>"$initrd/modules/order"
done
(cd "$initrd" && find . -print0 | sort -z | cpio --null -o -H newc --quiet) | gzip -n >"$out/initrd.img"

cp "$root/boot/vmlinuz-$kernel" "$out/vmlinuz"
cp "$here/cmdline" "$here/image.json" "$out/"
used=$(du -sxm "$root" | cut -f1)
truncate -s "$((used + used / 4 + 200))M" "$work/disk.raw"
mke2fs -q -t ext4 -m 0 -L root -O ^metadata_csum,^has_journal -E lazy_itable_init=1 -d "$root" "$work/disk.raw"
qemu-img convert -f raw -O qcow2 "$work/disk.raw" "$out/disk.qcow2"

#!/bin/sh
# First process of a machine: what Debian's cloud kernels have as modules is loaded, then systemd
# takes over from the root file system on /dev/vda. An initramfs of our own has 20 files, Debian's
# a thousand, which takes a minute to unpack under emulation.
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
while read -r module; do
  /bin/busybox insmod "$module" || echo "initramfs: insmod $module failed"
done < /modules.list
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 600 ]; do  # The disk is found by a kernel thread.
  tries=$((tries + 1))
  /bin/busybox usleep 50000
done
/bin/busybox mount -t ext4 /dev/vda /root || echo "initramfs: no root file system"
/bin/busybox umount /proc
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init

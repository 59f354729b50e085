#!/bin/busybox sh
# The first process: finds the disk and hands over to the system on it.
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in virtio_pci virtio_blk crc32c_generic ext4; do /bin/busybox modprobe -q $module; done
/bin/busybox mount -t ext4 /dev/vda /new || exec /bin/busybox poweroff -f
/bin/busybox umount /proc /sys
exec /bin/busybox switch_root /new /sbin/init

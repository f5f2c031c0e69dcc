#!/bin/bash
# guest.sh PACKAGE ENVIRONMENT COMMAND…: runs COMMAND under a kernel of Debian's, as root, with cgroup v2 alone.
#
# PACKAGE is one of Debian's kernels by its full name (apt-cache search linux-image), ENVIRONMENT a virtual
# environment with purplebox in it, made by /usr/bin/python3 and not editable. The guest is an emulated
# machine without a network; it sees this machine's files, read-only, under a layer of its own. Neither
# that layer nor what is below it has idmapped mounts, so ENVIRONMENT and this folder are copied: COMMAND
# starts in the copy of this folder, with ENVIRONMENT's programs first in PATH. It takes ten times as long
# as it would here, and more: for what is counted and not for what is timed.
#
# Needs root, and of Debian's packages qemu-system-x86, busybox-static, cpio and xz-utils.
set -euo pipefail
package=$1 environment=$(realpath "$2") here=$(realpath "$(dirname "$0")")
shift 2
work=$(mktemp -d /var/tmp/purple-guest.XXXXXX)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download -qq "$package" 2>/dev/null
dpkg-deb -x "$package"_*.deb kernel

mkdir -p initramfs/{bin,proc,sys,dev,lower,upper,new}
cp "$(command -v busybox)" initramfs/bin/
for module in fs/netfs/netfs net/9p/9pnet net/9p/9pnet_virtio fs/9p/9p fs/overlayfs/overlay; do
    file=$(find kernel -path "*/kernel/$module.ko*")
    case $file in
    *.xz) xz -dc "$file" >"initramfs/${module##*/}.ko" ;;
    ?*) cp "$file" initramfs/ ;;
    esac
done
cat >initramfs/init <<'END'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in netfs 9pnet 9pnet_virtio 9p overlay; do
    [ ! -e /$module.ko ] || $b insmod /$module.ko
done
$b mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /lower
$b mount -t tmpfs -o size=60% tmpfs /upper
$b mkdir /upper/files /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new
for place in proc sys dev; do $b mount --move /$place /new/$place; done
$b mount -t cgroup2 -o nsdelegate cgroup2 /new/sys/fs/cgroup
for place in tmp run; do $b mount -t tmpfs tmpfs /new/$place; done
exec $b switch_root /new /bin/bash "$($b sed "s/.*work=//" /new/proc/cmdline)/job"
END
chmod +x initramfs/init
cat >job <<END
export PATH=/tmp/environment/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
ip link set lo up
mkdir -p /dev/pts /dev/shm /sys/fs/cgroup/init
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
echo \$\$ >/sys/fs/cgroup/init/cgroup.procs
echo "+memory +pids +cpu +io" >/sys/fs/cgroup/cgroup.subtree_control
ulimit -n 100000
cp -a $(printf %q "$environment") /tmp/environment
cp -a $(printf %q "$here") /tmp/benchmarks
cd /tmp/benchmarks
uname -r
$(printf '%q ' "$@") 2>&1
echo o >/proc/sysrq-trigger
sleep 60
END
(cd initramfs && find . | cpio -o -H newc --quiet | gzip -1 >../initramfs.gz)
qemu-system-x86_64 -machine q35 -cpu max -smp 2 -m 3000 -kernel kernel/boot/vmlinuz-* -initrd initramfs.gz \
    -append "console=ttyS0 quiet panic=-1 work=$work" -nographic -no-reboot -nic none \
    -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap

#!/bin/busybox sh
# The first process of the guest: runs each line of /tests, one process per test, and says how it ended.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs devtmpfs /dev
$busybox mkdir -p /dev/pts /dev/shm
$busybox mount -t devpts devpts /dev/pts
# The project may be somewhere below: it stays where its tests know it to be.
$busybox mkdir -p /tmp /below
$busybox mount --bind /tmp /below
$busybox mount -t tmpfs -o mode=1777 tmpfs /tmp
for name in $($busybox ls /below); do
    $busybox mkdir "/tmp/$name"
    $busybox mount --bind "/below/$name" "/tmp/$name"
done
$busybox mount -t tmpfs tmpfs /run
$busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
# Controllers for whoever makes groups below the root: those that this kernel has.
for controller in cpu memory pids; do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done
for module in inet_diag tcp_diag udp_diag; do
    $busybox insmod "/modules/$module"
done
$busybox ifconfig lo up
# Properties of pure code are shown where processors are real.
export LARIAT_TEST_GUEST=1 HOME=/root LANG=C.UTF-8 LARIAT_TEST_SKIPS=/tmp/skips PROPTEST_CASES=4
: > /tmp/skips
echo "LARIAT kernel $($busybox uname -r)"
while IFS='	' read -r dir program name; do
    cd "$dir" || continue
    $busybox timeout -s KILL 120 "$program" --exact "$name" --nocapture < /dev/null > /tmp/said 2>&1
    code=$?
    now=$($busybox cut -d. -f1 /proc/uptime)
    if [ "$code" = 0 ]; then
        echo "LARIAT pass $name, at $now s"
    else
        echo "LARIAT fail $name: exit code $code, at $now s"
        $busybox tail -c 4000 /tmp/said
    fi
done < /tests
while read -r line; do
    echo "LARIAT skip $line"
done < /tmp/skips
echo "LARIAT end"
$busybox poweroff -f

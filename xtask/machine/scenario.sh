#!/bin/sh
# Runs inside of the machine, as the user of a fresh Linux with cgroup v2 and systemd would.
# Prints `ok NAME` or `FAILED NAME: …` per check; the last line counts them.
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok $1 ($(cut -d. -f1 /proc/uptime) s)"; }
no() { failed=$((failed + 1)); echo "FAILED $1: $2"; }
is() { if [ "$2" = "$3" ]; then ok "$1"; else no "$1" "expected '$3', found '$2'"; fi; }
does() { # NAME COMMAND…: it succeeds
  name=$1; shift
  if output=$("$@" 2>&1); then ok "$name"; else no "$name" "$* ended with $?: $output"; fi
}
comes() { # NAME SECONDS COMMAND…: it succeeds within so many seconds
  name=$1 left=$2; shift 2
  until output=$("$@" 2>&1); do
    left=$((left - 1))
    if [ $left -le 0 ]; then no "$name" "$*: $output"; return 1; fi
    sleep 1
  done
  ok "$name"
}
keepers() { grep -lx keeper /proc/[0-9]*/comm 2>/dev/null; }
in_pods() { find /sys/fs/cgroup/wharf/pods -name cgroup.procs -exec cat {} + | sort -n; }
left() { # what an instance must not leave behind
  keepers
  find /sys/fs/cgroup -maxdepth 1 -name 'wharf*'
  grep -E 'wharf|overlay' /proc/self/mounts
  ls /sys/class/net | grep -vx lo
}
gone() { [ -z "$(left)" ]; }
first() { kubectl get pods -l app=limited -o 'jsonpath={.items[0].metadata.name}'; }

is "version 2 alone" "$(grep -c ' cgroup2 ' /proc/self/mounts) $(grep -c ' cgroup ' /proc/self/mounts)" "1 0"
does "doctor" wharf doctor

# Under systemd, as packaging/wharf.service has it.
does "the unit starts" systemctl start wharf
comes "the server is ready" 60 wharf status
for image in /machine/images/*.tar; do does "load $(basename "$image")" wharf image load "$image"; done
does "up writes the kubeconfig of a server that runs" wharf up
does "apply" kubectl apply -f /machine/pods.yaml
does "the Deployment is rolled out" kubectl rollout status deployment/limited --timeout=60s
does "containers that share are ready" kubectl wait --for=condition=Ready pod/shared --timeout=60s
does "the greedy one fails" kubectl wait --for=jsonpath='{.status.phase}'=Failed pod/greedy --timeout=60s

pod=$(first)
is "limits of a container" "$(kubectl exec "$pod" -- sh -c 'cd /sys/fs/cgroup; cat memory.max cpu.max cpu.weight memory.swap.max memory.oom.group' | tr '\n' ' ')" "67108864 50000 100000 35 0 1 "
is "limits of a pod" "$(cd /sys/fs/cgroup/wharf/pods/burstable && for pod in pod*; do [ "$(cat "$pod/memory.max")" = 67108864 ] && cat "$pod/cpu.max" "$pod/cpu.weight"; done | tr '\n' ' ')" "50000 100000 35 50000 100000 35 "
is "out of memory" "$(kubectl get pod greedy -o 'jsonpath={.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}')" "OOMKilled 137"
is "a whole container dies of it" "$(kubectl logs greedy)" ""
is "logs" "$(kubectl logs "$pod")" begun
is "devices that are not given cannot be opened" "$(kubectl exec "$pod" -- sh -c 'mknod /tmp/mem c 1 1; cat /tmp/mem 2>&1; echo x > /dev/null && echo null')" "cat: can't open '/tmp/mem': Operation not permitted
null"
is "containers of a pod share memory" "$(kubectl exec shared -c two -- cat /dev/shm/x)" shared
does "volumes in memory are shared" kubectl exec shared -c one -- touch /memory/file
does "by both" kubectl exec shared -c two -- ls /memory/file
is "a cgroup is seen as the root" "$(kubectl exec "$pod" -- cat /proc/self/cgroup)" "0::/"

# The server may be killed, restarted and stopped: containers go on.
before=$(in_pods) keepers=$(keepers)
is "a keeper per running pod" "$(echo "$keepers" | wc -l)" 4
server=$(systemctl show -p MainPID --value wharf)
kill -9 "$server"
comes "systemd starts a killed server again" 60 sh -c "[ \$(systemctl show -p MainPID --value wharf) != $server ] && wharf status"
does "the unit is restarted" systemctl restart wharf
comes "the server is ready again" 60 wharf status
is "keepers are the same" "$(keepers)" "$keepers"
is "containers are the same" "$(in_pods)" "$before"
is "nothing was restarted" "$(kubectl get pods -o 'jsonpath={.items[*].status.containerStatuses[*].restartCount}')" "0 0 0 0 0"
does "systemd looks at its tree again" systemctl daemon-reload
is "controllers stay" "$(kubectl exec "$(first)" -- cat /sys/fs/cgroup/memory.max)" 67108864
does "the unit stops" systemctl stop wharf
is "containers outlive the unit" "$(keepers)" "$keepers"
is "its cgroup is empty" "$(ls -d /sys/fs/cgroup/system.slice/wharf.service 2>/dev/null)" ""

# By hand, with the same data.
does "up takes them over" wharf up
is "keepers are still the same" "$(keepers)" "$keepers"
does "down" wharf down
comes "nothing is left" 10 gone
is "indeed nothing" "$(left)" ""
does "reset" wharf reset --yes

# In a container that sees its own part of the tree as the whole, and has its processes in there.
mkdir /sys/fs/cgroup/box
cat > /tmp/box.sh <<'END'
echo $$ > /sys/fs/cgroup/box/cgroup.procs
exec unshare --cgroup --mount sh -c '
  umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
  wharf up && wharf image load /machine/images/busybox.tar && kubectl apply -f /machine/pods.yaml || exit 1
  kubectl rollout status deployment/limited --timeout=60s || exit 1
  cat /sys/fs/cgroup/wharf/pods/burstable/*/memory.max
  wharf down && wharf reset --yes'
END
does "in a container" sh /tmp/box.sh
is "limits in a container" "$(echo "$output" | grep -c 67108864)" 2
comes "nothing is left of the container" 10 rmdir /sys/fs/cgroup/box/init /sys/fs/cgroup/box

echo "passed $passed failed $failed"

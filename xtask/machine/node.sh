# One node's containers on cgroup version 2: limits, devices, memory; keepers under systemd; `down`;
# and all of it in a container. Afterwards nothing is left.
first() { kubectl get pods -l app=limited -o 'jsonpath={.items[0].metadata.name}'; }

is "version 2 alone" "$(grep -c ' cgroup2 ' /proc/self/mounts) $(grep -c ' cgroup ' /proc/self/mounts)" "1 0"
does "doctor" wharf doctor

# Under systemd, as packaging/wharf.service has it.
does "the unit starts" systemctl start wharf
does "the server is ready when it has" wharf status
for image in /machine/images/*.tar; do does "load $(basename "$image")" wharf image load "$image"; done
does "up writes the kubeconfig of a server that runs" wharf up
does "apply" kubectl apply -f /machine/pods.yaml
does "the Deployment is rolled out" kubectl rollout status deployment/limited --timeout=300s
does "containers that share are ready" kubectl wait --for=condition=Ready pod/shared --timeout=300s
does "the greedy one fails" kubectl wait --for=jsonpath='{.status.phase}'=Failed pod/greedy --timeout=300s

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
is "a keeper per running pod" "$(echo "$keepers" | wc -l)" 3
server=$(systemctl show -p MainPID --value wharf)
kill -9 "$server"
comes "systemd starts a killed server again" 300 sh -c "[ \$(systemctl show -p MainPID --value wharf) != $server ] && wharf status"
does "the unit is restarted" systemctl restart wharf
does "the server is ready again when it has" wharf status
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
comes "nothing is left" 60 gone
is "indeed nothing" "$(left)" ""
does "reset" wharf reset --yes

# In a container that sees its own part of the tree as the whole, and has its processes in there.
mkdir /sys/fs/cgroup/box
cat > /tmp/box.sh <<'END'
echo $$ > /sys/fs/cgroup/box/cgroup.procs
exec unshare --cgroup --mount sh -c '
  umount /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
  wharf up && wharf image load /machine/images/busybox.tar && kubectl apply -f /machine/pods.yaml || exit 1
  kubectl rollout status deployment/limited --timeout=300s || exit 1
  cat /sys/fs/cgroup/wharf/pods/burstable/*/memory.max
  wharf down && wharf reset --yes'
END
does "in a container" sh /tmp/box.sh
is "limits in a container" "$(echo "$output" | grep -c 67108864)" 2
comes "nothing is left of the container" 60 rmdir /sys/fs/cgroup/box/init /sys/fs/cgroup/box

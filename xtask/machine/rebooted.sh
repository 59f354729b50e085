# After a shutdown and a new start: nobody does anything, and the cluster is there.
run_again() { # as many running containers as there are, of pods that are to run always
  [ "$(kubectl get pods -l runs=always -o 'jsonpath={.items[*].status.containerStatuses[*].ready} {.items[*].status.containerStatuses[*].restartCount}')" = "true true true true 1 1 1 1" ]
}

does "another boot" sh -c '! cmp -s /root/boot /proc/sys/kernel/random/boot_id'
comes "the unit has started by itself" 300 wharf status
comes "as a unit" 300 systemctl is-active wharf
comes "pods run again, restarted once" 300 run_again
kubectl get namespaces,services,deployments,replicasets,pods,configmaps,secrets,serviceaccounts,clusterroles -A -o name | sort > /tmp/objects
is "objects are the same" "$(diff /root/objects /tmp/objects)" ""
is "pods are the same" "$(template pods '{{range .items}}{{.metadata.name}} {{.metadata.uid}}{{"\n"}}{{end}}' | diff /root/pods -)" ""
is "people see a restart" "$(kubectl get pod client --no-headers | tr -s ' ' | cut -d' ' -f1-4)" "client 1/1 Running 1"
is "what is done stays done" "$(kubectl get pod done -o 'jsonpath={.status.phase} {.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.terminated.exitCode}')" "Succeeded 0 0"
comes "what runs once has failed" 120 sh -c '[ "$(kubectl get pod once -o "jsonpath={.status.phase} {.status.containerStatuses[0].restartCount}")" = "Failed 0" ]'
is "the node tells of it" "$(kubectl get events -A --field-selector reason=Rebooted -o 'jsonpath={.items[*].type}')" Warning
is "on the disk, what was there" "$(inside cat /disk/starts)" "start
start"
is "in memory, what is new" "$(inside cat /memory/starts)" start
is "it was asked to end" "$(inside cat /disk/ends)" asked
is "logs of before" "$(kubectl logs client -c main --previous | head -n 1)" begun
is "logs of now" "$(kubectl logs client -c main)" begun
is "how it ended is told" "$(kubectl get pod client -o 'jsonpath={.status.containerStatuses[0].lastState.terminated.reason}')" Completed
is "an object in a file" "$(inside cat /settings/greeting)" hello

address=$(template service/web '{{.spec.clusterIP}}')
comes "endpoints are those that run" 120 sh -c '[ "$(kubectl get endpoints web -o "jsonpath={.subsets[*].addresses[*].ip}" | tr " " "\n" | sort)" = "$(kubectl get pods -l app=web -o "jsonpath={.items[*].status.podIP}" | tr " " "\n" | sort)" ]'
does "a Service's address from a pod" from_pod "$address" 80
does "and from the machine" from_machine "$address" 80
does "a name from a pod" from_pod web 80
does "a port of the node" from_machine 10.0.2.15 30080

# Nothing of the boot before is in the way.
is "a keeper per running pod" "$(keepers | wc -l)" 4
is "a link per pod with a network" "$(links | wc -l)" 4
is "an address per pod with a network" "$(ls /var/lib/wharf/run/network/*.json | wc -l)" 3
is "sockets of keepers that live" "$(ls /var/lib/wharf/run/sandboxes/*/keeper.sock | wc -l)" 4
kubectl get pods -o 'jsonpath={.items[*].status.initContainerStatuses[*].containerID} {.items[*].status.containerStatuses[*].containerID}' | tr ' ' '\n' | sed 's,.*//,,' > /tmp/containers
is "roots of containers that are known" "$(ls /var/lib/wharf/images/roots | grep -vxFf /tmp/containers)" ""
is "a cgroup per pod" "$(find /sys/fs/cgroup/wharf/pods -mindepth 1 -name 'pod*' | wc -l)" 4

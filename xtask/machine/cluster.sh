# A cluster under systemd, as people run it; it stays for the starts after this one.

does "the unit is enabled and started" systemctl enable --now wharf
comes "the server is ready" 300 wharf status
does "load" wharf image load /machine/images/busybox.tar
does "kubeconfig" wharf up
does "apply" kubectl apply -f /machine/cluster.yaml
does "the Deployment is rolled out" kubectl rollout status deployment/web --timeout=300s
does "pods are ready" kubectl wait --for=condition=Ready pod -l runs=always --timeout=300s
does "one is done" kubectl wait --for=jsonpath='{.status.phase}'=Succeeded pod/done --timeout=300s
does "one runs once" kubectl wait --for=condition=Ready pod/once --timeout=300s

is "the node has the machine's address" "$(kubectl get nodes -o 'jsonpath={.items[*].status.addresses[?(@.type=="InternalIP")].address}')" 10.0.2.15
is "exec" "$(inside echo said)" said
is "exec tells how a command ended" "$(inside sh -c 'exit 7' 2>/dev/null; echo $?)" 7
is "logs" "$(kubectl logs client -c main)" begun
is "limits are read inside" "$(inside sh -c 'cd /sys/fs/cgroup; cat memory.max cpu.max pids.max' | tr '\n' ' ')" "50331648 20000 100000 max "
address=$(template service/web '{{.spec.clusterIP}}')
does "a Service's address from a pod" from_pod "$address" 80
does "and from the machine" from_machine "$address" 80
does "a name from a pod" from_pod web 80
does "the whole name" from_pod web.default.svc.cluster.local 80
does "a port of the node" from_machine 10.0.2.15 30080
does "also from a pod" from_pod 10.0.2.15 30080
does "the API from a pod" inside nc -w 30 kubernetes.default 443 -e true
is "what one start leaves" "$(inside sh -c 'cat /disk/starts /memory/starts /settings/greeting')" "start
start
hello"

kubectl get namespaces,services,deployments,replicasets,pods,configmaps,secrets,serviceaccounts,clusterroles -A -o name | sort > /root/objects
template pods '{{range .items}}{{.metadata.name}} {{.metadata.uid}}{{"\n"}}{{end}}' > /root/pods
cat /proc/sys/kernel/random/boot_id > /root/boot
sync

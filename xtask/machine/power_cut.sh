# After the power was cut: what was acknowledged is there, and everything works.
written=$(word written)

comes "the unit has started by itself" 300 wharf status
kubectl get configmaps -o 'jsonpath={range .items[*]}{.metadata.name}={.data.number}{"\n"}{end}' | grep ^written- | sort -t- -k2n > /tmp/found
seq "$written" | sed 's/.*/written-&=&/' > /tmp/expected
is "$written acknowledged objects are there" "$(head -n "$written" /tmp/found | diff /tmp/expected -)" ""
is "after them, none is missing in between" "$(wc -l < /tmp/found)" "$(tail -n 1 /tmp/found | cut -d= -f2)"
is "the change" "$(kubectl get configmap settings -o 'jsonpath={.metadata.annotations.written}')" yes
is "what was deleted" "$(kubectl get pod once --ignore-not-found -o name)" ""
is "the database" "$(sqlite3 /var/lib/wharf/store/state.db 'PRAGMA integrity_check')" ok
does "all replicas run" kubectl rollout status deployment/web --timeout=300s
is "as many as were asked for" "$(kubectl get deployment web -o 'jsonpath={.status.readyReplicas}')" 8
does "others, too" kubectl wait --for=condition=Ready pod -l runs=always --timeout=300s
does "a name from a pod" from_pod web 80
does "new pods of the image" kubectl create deployment hello --image=registry.cn-hangzhou.aliyuncs.com/ceyewan/hellok8s:v1
does "run" kubectl rollout status deployment/hello --timeout=300s
is "addresses are given once" "$(kubectl get pods -A -o 'jsonpath={range .items[?(@.status.phase=="Running")]}{.spec.hostNetwork}{.status.podIP}{"\n"}{end}' | sort | uniq -d)" ""
does "new writes" kubectl create configmap new
is "a keeper per running pod" "$(keepers | wc -l)" "$(kubectl get pods -A --field-selector status.phase=Running -o name | wc -l)"

does "reset" wharf reset --yes
comes "nothing is left" 60 gone
is "indeed nothing" "$(left)" ""
is "nothing on the disk" "$(ls -d /var/lib/wharf 2>/dev/null)" ""
is "nothing in the kubeconfig" "$(kubectl config get-contexts -o name)" ""
is "systemd leaves it at that" "$(systemctl is-active wharf)" inactive

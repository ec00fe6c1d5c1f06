{{/* What a schema cannot say. Each refusal names the value, and what to do. */}}

{{- define "stafette.check" -}}
{{- include "stafette.checkPools" . -}}
{{- include "stafette.checkRest" . -}}
{{- range $name, $group := .Values.groups -}}
{{- include "stafette.checkGroup" (dict "root" $ "name" $name "group" $group) -}}
{{- end -}}
{{- include "stafette.checkContradictions" . -}}
{{- end -}}

{{- define "stafette.checkPools" -}}
{{- $decodes := list -}}
{{- range $name, $pool := .Values.config.pools -}}
{{- $role := dig "role" "" $pool | default (get (dict "prefill" "prefill" "decode" "decode" "aggregated" "both") $name) -}}
{{- if not $role -}}
{{- fail (printf "config.pools.%s.role: must be given: prefill, decode or both (only prefill, decode and aggregated tell it by their name)" $name) -}}
{{- end -}}
{{- if has $role (list "decode" "both") -}}{{- $decodes = append $decodes $name -}}{{- end -}}
{{- end -}}
{{- if not $decodes -}}
{{- fail (printf "config.pools: of %s none decodes: add one named decode, or aggregated" (keys .Values.config.pools | sortAlpha | join ", " | default "none")) -}}
{{- end -}}
{{- range $pool, $own := include "stafette.pools" . | fromJson -}}
{{- $room := include "stafette.room" (dict "root" $ "pool" $pool) | int -}}{{- $groups := list -}}
{{- range $name, $group := $.Values.groups -}}
{{- if get $group.workers $pool -}}{{- $groups = append $groups $name -}}{{- end -}}
{{- end -}}
{{- if not $groups -}}
{{- fail (printf "groups: none takes %s: give one of them workers: {%s: 1}" $pool $pool) -}}
{{- end -}}
{{- if gt (int $own.replicas) (int $room) -}}
{{- fail (printf "%s.replicas: %d do not fit on the pods of %s, which take %d: raise pods (maxPods, with the autoscaler), or workers" (eq $pool "frontend" | ternary "config.frontend" (printf "config.pools.%s" $pool)) (int $own.replicas) (join ", " $groups) (int $room)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "stafette.checkGroup" -}}
{{- $where := printf "groups.%s" .name -}}
{{- $pools := include "stafette.pools" .root | fromJson -}}
{{- $size := include "stafette.pods" . | fromJson -}}
{{- if gt (int $size.min) (int $size.max) -}}
{{- fail (printf "%s.minPods: %d is above maxPods, %d" $where (int $size.min) (int $size.max)) -}}
{{- end -}}
{{- if or (lt (int $size.pods) (int $size.min)) (gt (int $size.pods) (int $size.max)) -}}
{{- fail (printf "%s.pods: %d must be between minPods and maxPods, %d and %d" $where (int $size.pods) (int $size.min) (int $size.max)) -}}
{{- end -}}
{{- $cpus := 0.0 -}}{{- $gpus := 0.0 -}}
{{- range $pool, $count := .group.workers -}}
{{- $own := get $pools $pool -}}
{{- if not $own -}}
{{- fail (printf "%s.workers.%s: is no pool of config.pools: there are %s" $where $pool (keys $pools | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $cpus = addf $cpus (mulf $count $own.cpus) -}}
{{- $gpus = addf $gpus (mulf $count $own.gpus) -}}
{{- end -}}
{{- $has := dig "gpu" "count" 0 .group -}}
{{- if and (gt $gpus 0.0) (not (dig "gpu" "type" "" .group)) -}}
{{- fail (printf "%s.gpu.type: must be given, since its workers take GPUs (num_gpus): the node label's value, such as NVIDIA-H100-80GB-HBM3, or any" $where) -}}
{{- end -}}
{{- if gt $gpus (float64 $has) -}}
{{- fail (printf "%s.gpu.count: %v is less than the %v that its workers take (num_gpus): raise it, or lower workers" $where $has $gpus) -}}
{{- end -}}
{{- $quantity := dig "resources" "limits" "cpu" "" .group | default (dig "resources" "requests" "cpu" "" .group) -}}
{{- if not $quantity -}}
{{- fail (printf "%s.resources: must limit cpu: Ray places workers by it" $where) -}}
{{- end -}}
{{- if gt $cpus (include "stafette.cpus" $quantity | float64) -}}
{{- fail (printf "%s.resources.limits.cpu: %v is less than the %v that its workers take (num_cpus): raise it, or lower workers" $where $quantity $cpus) -}}
{{- end -}}
{{- end -}}

{{- define "stafette.checkRest" -}}
{{- with .Values.gcsFaultTolerance -}}
{{- if and .enabled (not .redisAddress) -}}
{{- fail "gcsFaultTolerance.redisAddress: must be given: host:port of a Redis" -}}
{{- end -}}
{{- end -}}
{{- $volumes := 0 -}}
{{- range list "claimName" "hostPath" "image" -}}{{- if get $.Values.modelVolume . -}}{{- $volumes = add1 $volumes -}}{{- end -}}{{- end -}}
{{- if gt (int $volumes) 1 -}}
{{- fail "modelVolume: claimName, hostPath and image exclude each other: keep one" -}}
{{- end -}}
{{- $discovery := .Values.config.discovery | default dict -}}
{{- if and (eq (get $discovery "backend") "etcd") (not (dig "etcd" "endpoints" list $discovery)) -}}
{{- fail "config.discovery.etcd.endpoints: must be given where backend is etcd: [http://HOST:2379, ...]" -}}
{{- end -}}
{{- end -}}

{{/* Values that are right one by one, and cannot all be meant. Takes what stafette.check takes. */}}

{{- define "stafette.checkContradictions" -}}
{{- include "stafette.checkPlanner" . -}}
{{- include "stafette.checkListening" . -}}
{{- include "stafette.checkUnused" . -}}
{{- range $name, $group := .Values.groups -}}
{{- include "stafette.checkRequests" (dict "where" (printf "groups.%s" $name) "resources" $group.resources) -}}
{{- include "stafette.checkMemory" (dict "root" $ "name" $name "group" $group) -}}
{{- end -}}
{{- range $name := list "head" "autoscaler" "benchmark" -}}
{{- include "stafette.checkRequests" (dict "where" $name "resources" (get $.Values $name).resources) -}}
{{- end -}}
{{- range $name, $pool := .Values.config.pools -}}
{{- $ranks := include "stafette.engineFlag" (dict "root" $ "pool" $pool "flag" "tensor_parallel_size") | default "1" | int -}}
{{- $gpus := dig "num_gpus" 0.0 $pool | float64 -}}
{{- if and (gt $gpus 0.0) (gt $ranks 1) (ne $gpus (float64 $ranks)) -}}
{{- fail (printf "config.pools.%s.num_gpus: %v must be %d: each rank of tensor_parallel_size has a GPU of its own" $name $gpus $ranks) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* One of the engine's flags for a pool: its own, or that of all; empty where nobody gives it. */}}
{{- define "stafette.engineFlag" -}}
{{- $all := .root.Values.config.engine | default dict -}}
{{- $own := .pool.engine | default dict -}}
{{- $found := hasKey $own .flag | ternary (get $own .flag) (get $all .flag) -}}
{{- if $found -}}{{- $found | float64 -}}{{- end -}}
{{- end -}}

{{/* A planner that may ask for more than all pods take waits for what cannot come. */}}
{{- define "stafette.checkPlanner" -}}
{{- $planner := .Values.config.planner | default dict -}}
{{- $pools := .Values.config.pools -}}
{{- range $pool, $limits := $planner.pools | default dict -}}
{{- $where := printf "config.planner.pools.%s" $pool -}}
{{- if not (hasKey $pools $pool) -}}
{{- fail (printf "%s: is no pool of config.pools: there are %s" $where (keys $pools | sortAlpha | join ", ")) -}}
{{- end -}}
{{- $room := include "stafette.room" (dict "root" $ "pool" $pool) | int -}}
{{- $most := dig "max_replicas" 8 ($limits | default dict) | int -}}
{{- if and (eq (dig "mode" "off" $planner) "on") (gt $most $room) -}}
{{- fail (printf "%s.max_replicas: %d do not fit on the pods that take %s, which have room for %d: lower it, or %s" $where $most $pool $room ($.Values.autoscaler.enabled | ternary "raise their group's maxPods" "set autoscaler.enabled and their group's maxPods")) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "stafette.checkListening" -}}
{{- $config := .Values.config -}}
{{- range $section := list "frontend" "metrics" -}}
{{- with get $config $section -}}
{{- if has (.host | default "") (list "127.0.0.1" "localhost" "::1") -}}
{{- fail (printf "config.%s.host: %s is not reached from outside of its pod: use 0.0.0.0" $section .host) -}}
{{- end -}}
{{- if has (int .port) (list 8080 52365) -}}
{{- fail (printf "config.%s.port: %d is taken by Ray in each pod: choose another" $section (int .port)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $config.metrics.port (eq (int $config.metrics.port) (int $config.frontend.port)) -}}
{{- fail (printf "config.metrics.port: %d is config.frontend.port as well: choose another" (int $config.metrics.port)) -}}
{{- end -}}
{{- end -}}

{{- define "stafette.checkUnused" -}}
{{- if and .Values.monitoring.rules (not .Values.monitoring.enabled) -}}
{{- fail "monitoring.rules: needs monitoring.enabled: the alerts ask for what those PodMonitors collect" -}}
{{- end -}}
{{- $volume := .Values.modelVolume -}}
{{- if and (or $volume.claimName $volume.hostPath $volume.image) (not (contains (trimSuffix "/" $volume.mountPath) (toJson .Values.config))) -}}
{{- fail (printf "modelVolume: nothing in config is below its mountPath, %s, and config.model is %s: correct one of them" $volume.mountPath .Values.config.model) -}}
{{- end -}}
{{- end -}}

{{/* The API server would refuse the pods, one by one, where nobody looks. */}}
{{- define "stafette.checkRequests" -}}
{{- range $resource := list "cpu" "memory" -}}
{{- $asked := dig "requests" $resource "" $.resources -}}{{- $limit := dig "limits" $resource "" $.resources -}}
{{- if and $asked $limit (gt (include "stafette.quantity" $asked | float64) (include "stafette.quantity" $limit | float64)) -}}
{{- fail (printf "%s.resources.requests.%s: %v is above limits.%s, %v" $.where $resource $asked $resource $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* On CPUs the KV cache is the pod's memory, and so is the tier below it wherever it is. */}}
{{- define "stafette.checkMemory" -}}
{{- $needed := 0.0 -}}
{{- $tier := dig "host" "capacity_bytes" 0 (.root.Values.config.tiers | default dict) | float64 -}}
{{- range $name, $count := .group.workers -}}
{{- with get $.root.Values.config.pools $name -}}
{{- $own := include "stafette.engineFlag" (dict "root" $.root "pool" . "flag" "kv_cache_memory_bytes") | default "0" | float64 -}}
{{- $own = gt (dig "num_gpus" 0.0 . | float64) 0.0 | ternary 0.0 $own -}}
{{- $needed = addf $needed (mulf $count (addf $own $tier)) -}}
{{- end -}}
{{- end -}}
{{- $limit := dig "limits" "memory" "" .group.resources -}}
{{- if and $limit (ge $needed (include "stafette.quantity" $limit | float64)) -}}
{{- fail (printf "groups.%s.resources.limits.memory: %v does not hold the %.1f GiB that its workers keep for KV (kv_cache_memory_bytes, tiers.host.capacity_bytes): raise it, or lower those" .name $limit (divf $needed 1073741824.0)) -}}
{{- end -}}
{{- end -}}

{{/* A quantity of Kubernetes as a number: 1500m, 2Gi, 1e9. */}}
{{- define "stafette.quantity" -}}
{{- $text := toString . -}}
{{- $powers := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 -}}
{{- $unit := regexFind "[a-zA-Z]+$" $text -}}
{{- mulf (trimSuffix $unit $text | float64) (get $powers $unit | default 1.0) -}}
{{- end -}}

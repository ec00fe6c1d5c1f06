{{/* How many workers there are and how many pods take them; as JSON, read with fromJson. */}}

{{/* By pool, and for the frontend: replicas, num_cpus and num_gpus of each. One that is spread over
     nodes counts as so many, with a share each, and needs as many pods. */}}
{{- define "stafette.pools" -}}
{{- $pools := dict -}}
{{- range $name, $pool := .Values.config.pools -}}
{{- $nodes := dig "nodes" 1 $pool | int -}}
{{- $own := dict "nodes" $nodes "replicas" (mul $nodes (dig "replicas" 1 $pool | int)) -}}
{{- $own = merge $own (dict "cpus" (divf (dig "num_cpus" 1.0 $pool) $nodes) "gpus" (divf (dig "num_gpus" 0.0 $pool) $nodes)) -}}
{{- $_ := set $pools $name $own -}}
{{- end -}}
{{- with .Values.config.frontend -}}
{{- $_ := set $pools "frontend" (dict "replicas" (.replicas | default 1 | int) "cpus" (.num_cpus | default 0.0) "gpus" (.num_gpus | default 0.0)) -}}
{{- end -}}
{{- toJson $pools -}}
{{- end -}}

{{/* Of one group: pods, min, max. Takes (dict "root" $ "group" $group). */}}
{{- define "stafette.pods" -}}
{{- $pools := include "stafette.pools" .root | fromJson -}}
{{- $pods := 0 -}}
{{- range $pool, $count := .group.workers -}}
{{- $own := get $pools $pool | default (dict "replicas" 0) -}}
{{- $pods = max $pods (divf $own.replicas $count | ceil | int) (get $own "nodes" | default 1 | int) -}}
{{- end -}}
{{- $pods = hasKey .group "pods" | ternary (get .group "pods") $pods | int -}}
{{- $max := hasKey .group "maxPods" | ternary (get .group "maxPods") $pods | int -}}
{{- $min := hasKey .group "minPods" | ternary (get .group "minPods") (min $pods $max) | int -}}
{{- toJson (dict "pods" $pods "min" $min "max" $max) -}}
{{- end -}}

{{/* How many workers of a pool all pods take, at most. Takes (dict "root" $ "pool" NAME). */}}
{{- define "stafette.room" -}}
{{- $room := 0 -}}
{{- range $group := .root.Values.groups -}}
{{- with get $group.workers $.pool -}}
{{- $size := include "stafette.pods" (dict "root" $.root "group" $group) | fromJson -}}
{{- $room = add $room (mul (int .) ($.root.Values.autoscaler.enabled | ternary $size.max $size.pods)) -}}
{{- end -}}
{{- end -}}
{{- $room -}}
{{- end -}}

{{/* Whole CPUs of a quantity, as KubeRay tells them to Ray: 1500m are 2. */}}
{{- define "stafette.cpus" -}}
{{- $cpu := toString . -}}
{{- if hasSuffix "m" $cpu -}}
{{- divf (trimSuffix "m" $cpu | float64) 1000 | ceil -}}
{{- else -}}
{{- float64 $cpu | ceil -}}
{{- end -}}
{{- end -}}

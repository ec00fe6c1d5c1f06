{{/*
Serve's config. Each worker takes one of its pool's own Ray resource, which only the pods of its
groups have. Replicas are set beside the arguments, not in them: other arguments replace every
replica, another number only adds or removes some. Those of a planned pool are of its first start.
Planned pools follow the planner by Serve's external scaler, or by a policy of its autoscaler.
*/}}
{{- define "stafette.serveConfig" -}}
{{- $args := deepCopy .Values.config -}}
{{- $planner := $args.planner | default dict -}}
{{- $on := eq (dig "mode" "off" $planner) "on" -}}
{{- $policy := eq (dig "scaler" "external" $planner) "policy" -}}
{{- $deployments := list -}}
{{- range $name, $pool := $args.pools -}}
{{- $camel := list -}}
{{- range splitList "_" $name -}}{{- $camel = append $camel (title .) -}}{{- end -}}
{{- $deployment := eq $name "aggregated" | ternary "Worker" (printf "%sWorker" (join "" $camel)) -}}
{{- $replicas := dig "replicas" 1 $pool | int -}}
{{- $limits := dig "pools" $name nil $planner -}}
{{- $size := dict "num_replicas" $replicas -}}
{{- if and $on $policy (kindIs "map" $limits) -}}
{{- $size = dict "autoscaling_config" (dict "min_replicas" 0 "initial_replicas" $replicas "max_replicas" 1048576 "upscale_delay_s" 0 "downscale_delay_s" 0) -}}
{{- end -}}
{{- $deployments = append $deployments (merge (dict "name" $deployment) $size) -}}
{{- include "stafette.placed" (dict "pool" $pool "resource" $name) -}}
{{- if kindIs "map" $limits -}}{{- $_ := set $pool "replicas" (dig "min_replicas" 1 $limits | int) -}}{{- end -}}
{{- end -}}
{{- $deployments = append $deployments (dict "name" "Frontend" "num_replicas" ($args.frontend.replicas | default 1 | int)) -}}
{{- include "stafette.placed" (dict "pool" $args.frontend "resource" "frontend") -}}
{{- $application := dict "name" $args.name "import_path" "stafette.platform.app:build" "route_prefix" nil "args" $args "deployments" $deployments -}}
{{- if and $on $policy -}}{{- $_ := set $application "autoscaling_policy" (dict "policy_function" "stafette.platform.planner.running.plan_policy:PlanPolicy") -}}
{{- else if $on -}}{{- $_ := set $application "external_scaler_enabled" true -}}{{- end -}}
{{- $yaml := toYaml (dict "proxy_location" "Disabled" "applications" (list $application)) -}}
{{- if not $yaml -}}{{- fail "config: holds a character that YAML cannot hold: remove it" -}}{{- end -}}
{{- $yaml -}}
{{- end -}}

{{/* Changes the copy of a pool's settings that it is given. */}}
{{- define "stafette.placed" -}}
{{- $_ := unset .pool "replicas" -}}
{{- $own := dict (printf "stafette_%s" .resource) 1 -}}
{{- $_ := set .pool "resources" (merge $own (.pool.resources | default dict)) -}}
{{- end -}}

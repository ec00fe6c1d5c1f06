{{/*
Serve's config. Each worker takes one of its pool's own Ray resource, which only the pods of its
groups have. Replicas are set beside the arguments, not in them: other arguments replace every
replica, another number only adds or removes some. Those of a planned pool are of its first start.
*/}}
{{- define "stafette.serveConfig" -}}
{{- $args := deepCopy .Values.config -}}
{{- $deployments := list -}}
{{- range $name, $pool := $args.pools -}}
{{- $camel := list -}}
{{- range splitList "_" $name -}}{{- $camel = append $camel (title .) -}}{{- end -}}
{{- $deployment := eq $name "aggregated" | ternary "Worker" (printf "%sWorker" (join "" $camel)) -}}
{{- $deployments = append $deployments (dict "name" $deployment "num_replicas" (dig "replicas" 1 $pool | int)) -}}
{{- include "stafette.placed" (dict "pool" $pool "resource" $name) -}}
{{- $limits := dig "pools" $name nil ($args.planner | default dict) -}}
{{- if kindIs "map" $limits -}}{{- $_ := set $pool "replicas" (dig "min_replicas" 1 $limits | int) -}}{{- end -}}
{{- end -}}
{{- $deployments = append $deployments (dict "name" "Frontend" "num_replicas" ($args.frontend.replicas | default 1 | int)) -}}
{{- include "stafette.placed" (dict "pool" $args.frontend "resource" "frontend") -}}
{{- $application := dict "name" $args.name "import_path" "stafette.platform.app:build" "route_prefix" nil "args" $args "deployments" $deployments -}}
{{- if eq (dig "mode" "off" ($args.planner | default dict)) "on" -}}{{- $_ := set $application "external_scaler_enabled" true -}}{{- end -}}
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

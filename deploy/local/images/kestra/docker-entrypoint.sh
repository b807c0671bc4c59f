#!/bin/sh
# Starts the engine with what docker-compose.yml gives Kestra's official image. Its arguments are for that image alone.
set -eu
export ENGINE_HOST=0.0.0.0 ENGINE_PORT=8080 ENGINE_MANAGEMENT_PORT=8081
export ENGINE_DIRECTORY=/app/storage ENGINE_DATABASE=file
export ENGINE_USERNAME="$API_USERNAME" ENGINE_PASSWORD="$API_PASSWORD"
# shellcheck disable=SC2086 (several options)
exec /opt/java/bin/java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dfile.encoding=UTF-8 ${JAVA_OPTS:-} \
    -cp "/opt/kestra/classes:/opt/kestra/jars/compile/*:/opt/kestra/jars/runtime/*" bridge.engine.Main

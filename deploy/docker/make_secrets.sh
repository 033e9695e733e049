#!/bin/sh
# Make what the images expect in /secrets, for a trial: a CA, a server certificate, a token.
#   deploy/docker/make_secrets.sh FOLDER [NAME ...]
# NAME: names and IP addresses of the server, beside localhost, cloud and 127.0.0.1.
#   tls.crt tls.key tokens   for the server        ca.crt token   for the edge
# The key of the CA is not kept. Only you may read the files: run the containers with your own id.
set -eu
folder=$1
shift
umask 077
mkdir "$folder"
cd "$folder"
names=DNS:localhost,DNS:cloud,IP:127.0.0.1
for name in "$@"; do
    case $name in
        *[!0-9.]*) names=$names,DNS:$name ;;
        *) names=$names,IP:$name ;;
    esac
done
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 \
    -subj "/CN=splitpoint trial CA" -keyout "$scratch/ca.key" -out ca.crt 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
    -subj "/CN=splitpoint" -keyout tls.key -out "$scratch/tls.csr" 2>/dev/null
printf 'subjectAltName=%s\n' "$names" >"$scratch/names"
openssl x509 -req -in "$scratch/tls.csr" -CA ca.crt -CAkey "$scratch/ca.key" -CAcreateserial \
    -CAserial "$scratch/serial" -days 365 -extfile "$scratch/names" -out tls.crt 2>/dev/null
openssl rand -hex 24 >token
cp token tokens

# Runs on the hub: starts the simulated api.abuseipdb.com, with a test CA in /root/ca.pem. /root/api has the calls and
# the accepted reports.
# shellcheck shell=sh
set -e
cd /root
mkdir -p api
if [ ! -e ca.pem ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 30 \
        -subj "/CN=a CA of the tests" -keyout ca.key -out ca.pem 2>/dev/null
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc \
        -subj "/CN=api.abuseipdb.com" -keyout api.key -out api.csr 2>/dev/null
    printf 'subjectAltName=DNS:api.abuseipdb.com\nbasicConstraints=CA:FALSE\n' >api.ext
    openssl x509 -req -in api.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 \
        -extfile api.ext -out api.pem 2>/dev/null
fi
systemd-run -q -u api python3 /root/abuseipdb.py /root/api /root/api.pem /root/api.key

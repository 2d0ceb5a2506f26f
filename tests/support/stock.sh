# The rig runs this script in a Debian root: it installs a server with Debian's own jails and the package with its
# documented settings. /mnt has the package.
# shellcheck shell=sh
apt-get install -y /mnt/f2bmqtt.deb
sed -i 's/^MQTT_HOST=.*/MQTT_HOST=10.213.77.11/; s/^MQTT_PASSWORD=.*/MQTT_PASSWORD=choose-your-own/' \
    /etc/fail2ban/mqtt.env
for jail in asterisk nsd recidive; do
    printf '[%s]\nenabled = true\n' "$jail"
done >/etc/fail2ban/jail.d/stock.local
# Without rsyslog, sshd's log is only in the journal.
printf '[sshd]\nenabled = true\nbackend = systemd\n' >>/etc/fail2ban/jail.d/stock.local
mkdir -p /var/log/asterisk
touch /var/log/asterisk/messages /var/log/nsd.log
# The settings of the hub's mosquitto.
printf 'listener 1883\npassword_file /etc/mosquitto/passwd\n' >/etc/mosquitto/conf.d/fleet.conf
mosquitto_passwd -c -b /etc/mosquitto/passwd fail2ban choose-your-own
chown mosquitto /etc/mosquitto/passwd

# Run by the rig in a Debian root: makes it a server with Debian's own jails, the package with its documented
# settings, and nothing else. In /mnt is the package.
# shellcheck shell=sh
apt-get install -y /mnt/f2bmqtt.deb
sed -i 's/^MQTT_HOST=.*/MQTT_HOST=10.213.77.11/; s/^MQTT_PASSWORD=.*/MQTT_PASSWORD=choose-your-own/' \
    /etc/fail2ban/mqtt.env
for jail in asterisk nsd recidive; do
    printf '[%s]\nenabled = true\n' "$jail"
done >/etc/fail2ban/jail.d/stock.local
# There is no log of sshd without rsyslog.
printf '[sshd]\nenabled = true\nbackend = systemd\n' >>/etc/fail2ban/jail.d/stock.local
mkdir -p /var/log/asterisk
touch /var/log/asterisk/messages /var/log/nsd.log
# The hub's.
printf 'listener 1883\npassword_file /etc/mosquitto/passwd\n' >/etc/mosquitto/conf.d/fleet.conf
mosquitto_passwd -c -b /etc/mosquitto/passwd fail2ban choose-your-own
chown mosquitto /etc/mosquitto/passwd

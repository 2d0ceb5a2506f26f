# The rig runs this script in a Debian root: it installs a server of the tests' fleet. /mnt has the package and the
# jails.
# shellcheck shell=sh
apt-get install -y /mnt/f2bmqtt.deb
sed -i 's/^MQTT_HOST=.*/MQTT_HOST=10.213.77.11/' /etc/fail2ban/mqtt.env
cp /mnt/jail.local /etc/fail2ban/
touch /var/log/auth.log /var/log/web.log /var/log/both.log
printf 'listener 1883\npassword_file /etc/mosquitto/passwd\n' >/etc/mosquitto/conf.d/fleet.conf
mosquitto_passwd -c -b /etc/mosquitto/passwd fail2ban fail2ban
chown mosquitto /etc/mosquitto/passwd

"""Runs Home Assistant's own core and MQTT integration with a broker on this machine. Every half second it writes the
discovered devices and their states to the file $1, as {"devices":[…],"states":{…},"errors":[…]}."""

import asyncio
import importlib.abc
import importlib.machinery
import json
import logging
import os
import sys
import types


class MissingPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Replaces packages for the cloud and Bluetooth, which Home Assistant imports and MQTT does not need."""

    NAMES = {"hass_nabucasa", "habluetooth", "bluetooth_data_tools", "home_assistant_bluetooth", "bleak"}

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: type(name, (), {})
        return module

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, MissingPackages())

from homeassistant import bootstrap, loader  # noqa: E402
from homeassistant.auth import auth_manager_from_config  # noqa: E402
from homeassistant.config_entries import ConfigEntries, ConfigEntry  # noqa: E402
from homeassistant.core import CoreState, HomeAssistant  # noqa: E402
from homeassistant.helpers import device_registry  # noqa: E402

ERRORS = []


class ErrorCollector(logging.Handler):
    def emit(self, record):
        if record.levelno >= logging.WARNING and "mqtt" in record.name:
            ERRORS.append(record.getMessage())


def snapshot(hass):
    devices = device_registry.async_get(hass).devices.values()
    return {
        "devices": [
            {"name": d.name, "manufacturer": d.manufacturer, "version": d.sw_version} for d in devices
        ],
        "states": {s.entity_id: {"state": s.state, **s.attributes} for s in hass.states.async_all()},
        "errors": ERRORS,
    }


async def main(out, folder):
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger().addHandler(ErrorCollector())
    hass = HomeAssistant(folder)
    os.makedirs(folder, exist_ok=True)
    open(os.path.join(folder, "configuration.yaml"), "a", encoding="utf-8").close()
    hass.config.skip_pip = True
    loader.async_setup(hass)
    hass.config_entries = ConfigEntries(hass, {})
    await bootstrap.async_load_base_functionality(hass)
    hass.auth = await auth_manager_from_config(hass, [{"type": "homeassistant"}], [])
    entry = ConfigEntry(
        domain="mqtt", title="broker", version=1, minor_version=1, source="user", unique_id=None, options={},
        data={"broker": "127.0.0.1", "port": 1883, "username": "fail2ban", "password": "fail2ban"},
        discovery_keys={}, subentries_data=None,
    )
    hass.set_state(CoreState.running)
    await hass.config_entries.async_add(entry)
    while True:
        await asyncio.sleep(0.5)
        with open(out + ".new", "w", encoding="utf-8") as file:
            json.dump(snapshot(hass), file, default=str)
        os.rename(out + ".new", out)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))

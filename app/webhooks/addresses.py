"""Which addresses webhooks may reach: those of the world, none of our own network, whatever form they are written in."""

from __future__ import annotations

import ipaddress

from app.webhooks.urls import Address

_PRIVATE_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # Azure's own server inside each of its machines, though the address looks public
    )
]  # fmt: skip
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
# Of those: protocols' own (Teredo among them, which hides an IPv4 address), 6to4 (so does it), and documentation.
_PRIVATE_V6 = [ipaddress.IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the world's; one that holds an IPv4 address in it is judged by that, too."""
    if isinstance(address, ipaddress.IPv4Address):
        private = any(address in network for network in _PRIVATE_V4)
        return not private and address.is_global and not address.is_multicast
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:  # how a network without IPv4 reaches those that have nothing else
        return is_public(_last_32_bits(address))
    if int(address) >> 32 & 0xFFFF_FFFF in _ISATAP and not is_public(_last_32_bits(address)):
        return False
    return address in _GLOBAL_V6 and not any(address in network for network in _PRIVATE_V6)


def _last_32_bits(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)

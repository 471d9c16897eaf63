# SPDX-License-Identifier: Apache-2.0
"""Lists of public names, read from what a package imported instead of kept by hand."""

from types import ModuleType


def public_names(namespace: dict) -> list[str]:
    """Return the sorted names in ``namespace`` (``globals()`` of a package) that are public and no modules.

    Example:
        >>> public_names({'kmeans': len, '_hidden': 1, 'math': ModuleType('math'), 'public_names': public_names})
        ['kmeans']
    """
    return sorted(
        name
        for name, value in namespace.items()
        if not name.startswith('_') and not isinstance(value, ModuleType) and value is not public_names
    )

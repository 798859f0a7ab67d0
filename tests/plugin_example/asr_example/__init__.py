"""A plugin: its classes in modules, its configs in `conf/<group>/<name>.yaml`."""

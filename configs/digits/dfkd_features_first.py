# The mixture's run with the inherited neck and heads held fixed while the backbone is brought back to them.
_base_ = './dfkd_mixture.py'
custom_hooks = [*_base_.custom_hooks, dict(type='mmdfkd.FeaturesFirstHook', until=0.3)]

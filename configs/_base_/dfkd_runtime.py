# What every data-free run needs beside the ordinary runtime.
custom_hooks = [
    dict(type='mmdfkd.DistillHook'),
    dict(type='mmdfkd.DataAuditHook'),
    dict(type='mmdfkd.TeacherPassesHook'),
    dict(type='mmdfkd.StudentExportHook'),
    # What the images are worth, in figures and pictures; about 1 % of a run's time.
    dict(type='mmdfkd.SyntheticQualityHook'),
    dict(type='mmdfkd.SyntheticVisHook'),
]
# On several processes; on one it is not used.
model_wrapper_cfg = dict(type='mmdfkd.DistributedDistiller')
custom_imports = dict(imports=['mmdfkd'], allow_failed_imports=False)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

"""Faults made for real: signals, full disks, servers and nodes that stop. Their tests:

| fault | tests |
|---|---|
| workers killed, again and again, and between two trials | test_workers; endurance (300 trials) |
| a trial that hangs, stands still, has no memory, raises, goes to NaN | test_workers |
| the search killed at random, stopped by SIGINT and SIGTERM | test_driver; search_job, tune |
| ASHA's rungs after a resume | tune/test_schedulers |
| the fine-tuning killed in each stage and before the publication | finetune_job |
| a node dies, one goes with notice, all nodes die | test_cluster_faults |
| a host is cut off from the network and comes back | test_hosts |
| S3 away, slow, answering with errors while files are written | test_storage_faults; storage |
| the study's SQL server started again | test_cluster_faults; study (MariaDB and Redis too) |
| a full disk under storage, under Ray's temporary folder | test_storage_faults |
| two searches of one name, two that resume, two fine-tunings | test_driver; run/test_lease |
| a publication cut off anywhere | test_storage_faults |
| corrupt data, checkpoints and ONNX files | data, run/test_checkpoint, export |
| hostile files and names | run/test_checkpoint, export, storage, settings |
| bad settings | settings |
| what is left behind | test_cluster_faults; cluster, run/test_processes |
| who may come in | cluster |
| secrets in a run's files and output | the tests that end with `no_secret`; search_job, study |

test_… are files of this folder, the others folders of tests/.
"""

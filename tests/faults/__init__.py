"""Faults made for real: signals, full disks, servers and nodes that stop. Where each of them is covered:

| fault | tests |
|---|---|
| trials' workers killed, again and again, and between two trials | test_workers.py; endurance.py for 300 trials |
| a trial that hangs or stands still, runs out of memory, raises, goes to NaN | test_workers.py; all of them: tests/test_search.py |
| the search killed at random moments, stopped by SIGINT and SIGTERM | test_driver.py; tests/test_search.py, tests/test_deterministic.py |
| ASHA's rungs after a resume | tests/test_schedulers.py |
| the fine-tuning killed in each stage, and between export and publication | tests/test_finetune.py, tests/test_stages.py |
| a node dies, one goes with notice, all nodes die | test_cluster_faults.py |
| a host is cut off from the network and comes back | test_hosts.py |
| S3 away, slow, answering with errors, while checkpoints and models are written | test_storage_faults.py; tests/test_storage.py |
| the study's SQL server started again | test_cluster_faults.py; tests/test_studies.py with MariaDB and Redis too |
| a full disk under storage, under Ray's temporary folder | test_storage_faults.py |
| two searches of one name, two that resume, two fine-tunings, one that was suspended | test_driver.py, tests/test_lease.py |
| a publication cut off anywhere | test_storage_faults.py |
| corrupt data, checkpoints and ONNX files | tests/test_data.py, tests/test_checkpoint.py, tests/test_onnx_model.py |
| hostile files and names | tests/test_checkpoint.py, tests/test_onnx_model.py, tests/test_storage.py, tests/test_settings.py |
| bad settings | tests/test_settings.py |
| what is left behind | test_cluster_faults.py, tests/test_cluster.py, tests/test_processes.py |
| who may come in | tests/test_cluster.py, tests/test_cluster_files.py |
| secrets in a run's files and output | every test here that ends with `no_secret`; tests/test_search.py, tests/test_studies.py |
"""

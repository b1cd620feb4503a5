"""The lines of Python that a person types first, beside a finished run at runs/w."""

import mnist_ray as mr

print("package:", mr.__file__)
run = mr.search(
    dataset="digits", trials=1, max_epochs=1, storage="runs", name="first", finetune=False
)
assert isinstance(run.best.params, dict)
assert 0 <= run.best.value <= 1
assert run.trials["number"].tolist() == [0]
assert len(run.history) == 1
assert run.study.best_value == run.best.value
assert run.uri.endswith("runs/first")
assert run.report_path is not None
assert run.report_path.is_file()
run = mr.finetune(run, stages="one-stage.yaml", calibrate="none")
label, probability = run.model.predict("seven.png")
prediction = run.model.predict("seven.png")
assert (prediction.label, prediction.probability) == (label, probability)
assert prediction.known
assert run.state == "done"

earlier = mr.open_run("runs/w")
assert earlier.state == "done"
assert mr.load_model(earlier.uri).predict("seven.png") == earlier.model.predict("seven.png")
try:
    mr.search(dataset="digits", trials=0)
except mr.SettingsError as error:
    print("refused:", error)
print("done")

"""The flags of the authors' own programs, and those of the recipes that mean the same."""

# By meaning, not by look: their initial_warmup is no --warmup_steps, and their beta1 not Adam's.
AUTHORS_FLAGS = {
    "initial_threshold": "pruning_initial_amount",
    "final_threshold": "amount",
    "initial_warmup": "pruning_warmup_steps",
    "final_warmup": "pruning_cooldown_steps",
    "beta1": "pruning_beta1",
    "beta2": "pruning_beta2",
    "deltaT": "pruning_window",
    "pruner_name": "criterion",
    "mask_name": "pruning_include",
    "non_mask_name": "pruning_exclude",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "evaluate_during_training": "eval_strategy",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "dropout",
    "predict_file": "validation_file",
    "threads": "preprocessing_num_workers",
    "no_cuda": "use_cpu",
}

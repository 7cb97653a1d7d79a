"""What are skip connections for? Four networks: with and without them, depth 4 and 16.

The deeper a chain of blocks, the more factors every gradient passes on its way back to the first
layers. A skip connection adds a path of factor 1. So what they are worth should grow with depth:
the script trains all four networks with one recipe and prints the scores, and the gradient norm
of the first layer before training.

    python Examples/skip_connections_ablation.py --quick      # 3 minutes on a 2-core CPU
    python Examples/skip_connections_ablation.py              # three hours there

The folder of the run holds one folder for each network. One seed is an anecdote: see --seed.
"""

import torch

from SegStudio.SegStudio import PALETTE, SegStudio

LEARNING_RATE = 1e-4
MOMENTUM = 0.9
BATCH_SIZE = 4
NETWORKS = {
    f"depth {depth}, {'with' if skip else 'no'} skips": (skip, depth)
    for depth in (4, 16)
    for skip in (True, False)
}


def main():
    flags = SegStudio.example_flags(__doc__, quick=(800, 1))
    settings = {
        "image_size": [64, 64],
        "momentum": MOMENTUM,
        "learning_rate": LEARNING_RATE,
        "batch_size": BATCH_SIZE,
        "use_gpu": True,
    }
    main_dls = SegStudio(**settings | flags.settings)
    data = SegStudio.SemanticSegmentation(dl_studio=main_dls, max_num_objects=5)
    data.load_shapes(flags.train_images, test_images=200 if flags.quick else 1000)
    figure = main_dls.new_figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="iteration", ylabel="MSE loss, mean of each interval")
    results, lines = {}, []
    for color, (name, (skip, depth)) in zip(PALETTE, NETWORKS.items(), strict=False):
        folder = {"run_name": f"{main_dls.run_dir.name}/{name.replace(', ', '-').replace(' ', '')}"}
        dls = SegStudio(**settings | flags.settings | folder)
        main_dls.log(f"\n{name}")
        segmenter = SegStudio.SemanticSegmentation(dl_studio=dls, max_num_objects=5)
        segmenter.load_PurdueShapes5MultiObject_dataset(data.dataserver_train, data.dataserver_test)
        model = segmenter.mUnet(skip_connections=skip, depth=depth).to(dls.device)
        pull = first_gradient(segmenter, model)
        history = segmenter.run_code_for_training_for_semantic_segmentation(
            model, report_every=50 if flags.quick else 500
        )
        scores = segmenter.run_code_for_testing_semantic_segmentation(model).compute()
        results[name] = {"loss": history.losses[-1], "first_gradient": pull, **scores}
        axes.plot(*zip(*history.column("loss"), strict=True), color=color, marker=".", label=name)
        lines.append(
            f"{name:24}{history.losses[-1]:10.1f}{scores['mean_iou']:10.3f}"
            f"{scores['boundary_f1']:13.3f}{pull:16.3g}{history.seconds:10.0f}"
        )
    axes.set_title("The skip connections' part in training")
    axes.grid(alpha=0.3)
    axes.legend()
    main_dls.save_figure(figure, "ablation.png")
    main_dls.write_json("metrics.json", results)
    main_dls.log(
        f"\n{'':24}{'last loss':>10}{'mean IoU':>10}{'boundary F1':>13}{'first gradient':>16}"
        f"{'seconds':>10}\n" + "\n".join(lines)
    )
    main_dls.log(f"\nPictures and numbers: {main_dls.run_dir}")
    main_dls.log("Next: python Examples/semantic_segmentation_dense.py --quick")


def first_gradient(segmenter, model):
    """Norm of the loss's gradient at the first layer of the untrained network, on one batch."""
    batch = next(iter(torch.utils.data.DataLoader(segmenter.dataserver_train, BATCH_SIZE)))
    device = segmenter.dl_studio.device
    loss = segmenter.SegmentationLossMSE()
    loss(model(batch["image"].to(device)), batch["mask_tensor"].to(device)).backward()
    norm = model.conv_in.weight.grad.norm().item()
    model.zero_grad()
    return norm


if __name__ == "__main__":
    SegStudio.run_example(main)

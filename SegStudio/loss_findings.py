"""What check_loss can find: every finding by name, in plain English.

An *objection*: the loss is wrong. A *remark*: it is right, but whoever trains with it should know.
Each finding has a sentence that says what is so, one that says why it matters in training, and a
place to read on. `replaces` names findings that follow from it, which are then not shown.
"""

from dataclasses import dataclass

OBJECTION, REMARK = "objection", "remark"


@dataclass(frozen=True)
class Entry:
    severity: str
    says: str
    matters: str
    read: str = "doc/losses.md"
    replaces: tuple = ()


WORSE_IS_CHEAPER = (
    "misses-rewarded",
    "false-positives-rewarded",
    "misses-ignored",
    "false-positives-ignored",
    "confident-mistakes-cheap",
    "perfect-not-minimum",
    "position-ignored",
    "minimum-not-zero",
)
AXES = ("wrong-axes", "batch-order", "images-mixed", "channels-mixed", "scrambled")
NO_GRADIENT = ("gradient-wrong", "empty-channels-unpunished", "slow")

FINDINGS = {
    # ---- it cannot be used ----
    "raises": Entry(
        OBJECTION,
        "The loss stops with an error.",
        "Training ends in the first iteration.",
        "doc/your-own.md",
    ),
    "device-fixed": Entry(
        OBJECTION,
        "The loss needs a device that this computer does not have.",
        "It runs on one computer only. Use the device of the output: output.device.",
        "doc/your-own.md",
        ("raises",),
    ),
    "not-a-scalar": Entry(
        OBJECTION,
        "The loss returns several numbers instead of one.",
        'loss.backward() stops with "grad can be implicitly created only for scalar outputs". '
        "Return the mean.",
        "doc/your-own.md",
        ("slow",),
    ),
    "returns-a-number": Entry(
        OBJECTION,
        "The loss returns a Python number, not a tensor.",
        ".item(), float() and numpy leave the graph, so there is nothing to call backward() on. "
        "Return the tensor; take .item() only for the log.",
        "doc/your-own.md",
        NO_GRADIENT,
    ),
    "detached": Entry(
        OBJECTION,
        "The loss has no gradient: the output is cut off from the result.",
        "No weight of the network changes. Look for .detach(), .data, .numpy(), torch.tensor(...) "
        "and torch.no_grad().",
        "doc/your-own.md",
        NO_GRADIENT,
    ),
    "hard-threshold": Entry(
        OBJECTION,
        "The loss counts thresholded pixels: a small change of the output does not change it.",
        "Its gradient is zero everywhere, so no weight changes. Train with the soft form, sums of "
        "products of probabilities, and keep the threshold for the score.",
        "doc/scores.md",
        (*NO_GRADIENT, "detached", "returns-a-number", "confident-mistakes-cheap",
         "softmax-wrong-axis"),
    ),
    "calls-backward": Entry(
        OBJECTION,
        "The loss calls backward() itself.",
        "The training loop calls it too: an error, or every gradient counted twice.",
        "doc/your-own.md",
        ("backward-fails", "gradient-wrong"),
    ),
    "backward-fails": Entry(
        OBJECTION,
        "The loss has a value, but backward() stops with an error.",
        "Training ends in the first iteration.",
        "doc/your-own.md",
        ("gradient-wrong",),
    ),
    "gradient-wrong": Entry(
        OBJECTION,
        "The gradient is not the slope of the value: a part of the loss does not reach backward().",
        "The log shows one loss and the network is trained on another. Look for .item(), "
        ".detach() or .data in one of the terms, or for a backward() of your own.",
        "doc/your-own.md",
    ),
    "inputs-changed": Entry(
        OBJECTION,
        "The loss changes the tensors that it is given.",
        "Whatever uses the output or the mask after it, a second term or the scores, gets other "
        "numbers. Write mask = mask / 255, not mask /= 255.",
        "doc/your-own.md",
    ),
    "remembers": Entry(
        OBJECTION,
        "The loss keeps numbers of earlier calls: they change the value, or backward() fails.",
        "The loss of one batch contains that of others. If a tensor is kept with its graph, the "
        "second iteration stops with an error. Keep loss.item() for the log, and return the loss "
        "of this batch.",
        "doc/your-own.md",
        ("not-deterministic",),
    ),
    "not-deterministic": Entry(
        OBJECTION,
        "The same output and mask cost something else at the second call: the loss is random.",
        "Runs cannot be repeated, and the noise hides what the network learns.",
        "doc/your-own.md",
        (*WORSE_IS_CHEAPER, *AXES, "batch-scaling", "gradient-wrong"),
    ),
    "argument-order": Entry(
        OBJECTION,
        "The loss takes the mask first and the output second.",
        "Training calls loss(output, mask). It would run, and train the network on nonsense.",
        "doc/your-own.md",
        WORSE_IS_CHEAPER,
    ),
    # ---- it does not measure what it should ----
    "higher-is-better": Entry(
        OBJECTION,
        "A better output costs more: the sign is wrong, or a score is returned as a loss.",
        "Training lowers the loss, so the masks get worse. Return 1 - score.",
        "doc/losses.md",
        WORSE_IS_CHEAPER,
    ),
    "term-higher-is-better": Entry(
        OBJECTION,
        "One term of the sum has the wrong sign: its score is added.",
        "That term pulls the network away from the mask. Add 1 - score.",
        "doc/losses.md",
        ("minimum-not-zero", "perfect-not-minimum"),
    ),
    "missing-factor-two": Entry(
        OBJECTION,
        "A perfect output costs 0.5 instead of 0: the factor 2 of Dice is missing, or, if IoU was "
        "meant, the overlap is not taken off the union.",
        "The loss falls to 0.5 and looks as if training had stopped half-way; in a sum the term "
        "has half its weight.",
        "doc/losses.md",
        ("minimum-not-zero",),
    ),
    "doubled-factor-two": Entry(
        OBJECTION,
        "A perfect output costs -1 instead of 0: Dice has its factor 2 twice.",
        "The loss goes below zero, and in a sum the term has twice its weight.",
        "doc/losses.md",
        ("minimum-not-zero",),
    ),
    "pixelwise-dice": Entry(
        OBJECTION,
        "This is not Dice: the fraction is taken pixel by pixel and then averaged. Dice divides "
        "the sum of the overlap by the sum of the sizes.",
        "It measures no overlap. On outputs that are not from 0 to 1 it also has a pole at "
        "p + m = -1 and no lower bound: training diverges.",
        "doc/pitfalls.md#mistake-3-dice-below-zero-and-its-pole",
        (*WORSE_IS_CHEAPER, "unbounded-outputs"),
    ),
    "errors-cancel": Entry(
        OBJECTION,
        "Differences with a sign are added up: too much at one pixel pays for too little at "
        "another.",
        "The loss has no minimum: outputs run away. Square the differences or take .abs() first.",
        "doc/losses.md",
        (*WORSE_IS_CHEAPER, "higher-is-better", "ignores-the-mask"),
    ),
    "position-ignored": Entry(
        OBJECTION,
        "An object at the wrong place costs nothing: only totals are compared.",
        "The network learns how large an object is, not where. Compare pixel by pixel, then sum.",
        "doc/losses.md",
    ),
    "ignores-the-mask": Entry(
        OBJECTION,
        "The value is the same for different masks.",
        "The network cannot learn from the masks.",
        "doc/your-own.md",
        (*WORSE_IS_CHEAPER, "higher-is-better", "channel-ignored", "image-ignored"),
    ),
    "ignores-the-output": Entry(
        OBJECTION,
        "The value is the same for different outputs.",
        "The gradient is zero; no weight changes.",
        "doc/your-own.md",
        (*WORSE_IS_CHEAPER, *AXES, *NO_GRADIENT, "hard-threshold", "detached", "channel-ignored",
         "image-ignored", "ignores-the-mask"),
    ),
    "misses-rewarded": Entry(
        OBJECTION,
        "To miss a pixel of the object costs less than to find it.",
        "Training drives the output to background.",
        replaces=("perfect-not-minimum",),
    ),
    "false-positives-rewarded": Entry(
        OBJECTION,
        "To mark a pixel outside the object costs less than to leave it out.",
        "Training drives the output to foreground.",
        replaces=("perfect-not-minimum",),
    ),
    "misses-ignored": Entry(
        OBJECTION,
        "To miss a pixel of the object costs nothing.",
        "An empty prediction is as good as a perfect one, and much easier to learn.",
    ),
    "false-positives-ignored": Entry(
        OBJECTION,
        "To mark a pixel outside the object costs nothing.",
        "Everything foreground is as good as a perfect output, and much easier to learn.",
    ),
    "confident-mistakes-cheap": Entry(
        OBJECTION,
        "The more wrong a pixel is, the less it costs.",
        "Wrong pixels are pushed further in the wrong direction. In a focal loss the weight is "
        "(1 - pt) ** gamma, not pt ** gamma.",
        replaces=tuple(name for name in WORSE_IS_CHEAPER if name != "confident-mistakes-cheap"),
    ),
    "flat-out-of-range": Entry(
        OBJECTION,
        "Below or above a limit the gradient is zero, even where the output is wrong.",
        "Such a pixel is never corrected. An untrained network returns values on both sides of 0. "
        "Do not clamp the output in the loss, and do not apply a ReLU to it.",
        "doc/losses.md",
        ("unbounded-outputs",),
    ),
    "sign-ignored": Entry(
        OBJECTION,
        "The sign of the output does not count: -50 costs as much as 50.",
        "The network may learn negative outputs for an object. They are below the threshold, so "
        "the object is not in the predicted mask.",
        "doc/losses.md",
        ("unbounded-outputs",),
    ),
    "scale-ignored": Entry(
        OBJECTION,
        "The scale of the output does not count: an output twice as large costs the same.",
        "A threshold makes the predicted mask from the output, and the loss does not tell the "
        "network on which side of the threshold to be. Add a term that compares the values, such "
        "as MSE.",
        "doc/losses.md",
    ),
    "classes-confused": Entry(
        OBJECTION,
        "An object in the channel of another class costs nothing.",
        "The network learns where objects are, not what they are. Compare channel by channel; do "
        "not sum or take the maximum over the channels first.",
        "doc/losses.md",
        ("flat-out-of-range",),
    ),
    "pixels-ignored": Entry(
        OBJECTION,
        "Some pixels do not count: they never have a gradient.",
        "There the network learns nothing. Usual cause: a loop that ends too early, or a slice "
        "such as [::2] or [1:].",
        "doc/losses.md",
    ),
    "classes-lost": Entry(
        OBJECTION,
        "With the masks of the shapes, 50 to 250, the masks of some classes count as empty.",
        "The network learns that these classes do not exist. Write mask > 0, which is right for "
        "masks of any values. A loss for COCO only, with masks of 255, can say COCO in its name or "
        "docstring.",
        "doc/masks.md",
        ("masks-of-255", "zero-one-masks", "ignores-the-mask", "classes-confused"),
    ),
    "perfect-not-minimum": Entry(
        OBJECTION,
        "An output that is worse than perfect costs less than the perfect one.",
        "Training goes past the right answer.",
    ),
    "mixed-terms": Entry(
        OBJECTION,
        "The terms of the sum read the output in two ways: one as the mask's values, the other as "
        "logits.",
        "No output is right for both. What the first term wants for background, 0, is a "
        "probability of 0.5 for the other.",
        "doc/losses.md#which-one-when",
        ("perfect-not-minimum", "minimum-not-zero", "false-positives-rewarded"),
    ),
    "double-sigmoid": Entry(
        OBJECTION,
        "The sigmoid is taken twice.",
        "A probability of 0 becomes one of 0.5, which the second sigmoid can never leave: "
        "a perfect output still costs much, and the gradient is small.",
        "doc/losses.md#which-one-when",
        ("minimum-not-zero",),
    ),
    "softmax-wrong-axis": Entry(
        OBJECTION,
        "The softmax runs over the wrong axis.",
        "Probabilities then add up to 1 over images, rows or columns; classes must compete, "
        "which are axis 1.",
        "doc/your-own.md",
        (*WORSE_IS_CHEAPER, *AXES),
    ),
    # ---- axes, images, channels ----
    "channel-loop-over-batch": Entry(
        OBJECTION,
        "The loop over the channels ends at the number of images: channels beyond it are ignored.",
        "With 4 images and 5 classes the fifth class, the star, is never learned. "
        "Axis 0 is the batch, axis 1 the channels.",
        "doc/pitfalls.md#mistake-2-the-loop-over-the-wrong-axis",
        ("channel-ignored", "background-left-out"),
    ),
    "image-loop-over-channels": Entry(
        OBJECTION,
        "The loop over the images ends at the number of channels.",
        "Images beyond it teach nothing, and a batch with fewer images raises an error. "
        "Axis 0 is the batch, axis 1 the channels.",
        "doc/pitfalls.md#mistake-2-the-loop-over-the-wrong-axis",
        ("image-ignored", "batch-order", "partial-batch", "fixed-size"),
    ),
    "channel-ignored": Entry(
        OBJECTION,
        "A channel does not count: whatever the network puts there, the loss is the same.",
        "That class is never learned.",
        "doc/pitfalls.md#mistake-2-the-loop-over-the-wrong-axis",
    ),
    "image-ignored": Entry(
        OBJECTION,
        "An image of the batch does not count.",
        "The network learns from a part of the data only.",
        "doc/pitfalls.md#mistake-2-the-loop-over-the-wrong-axis",
        ("batch-order",),
    ),
    "partial-batch": Entry(
        OBJECTION,
        "The loss stops with an error on a batch with fewer images.",
        "The last batch of an epoch is smaller if the number of images is not a multiple of the "
        "batch size. Use output.shape[0], not a fixed batch size.",
        "doc/losses.md",
    ),
    "batch-order": Entry(
        OBJECTION,
        "The value changes with the order of the images in the batch.",
        "Some images count more than others, by chance.",
        "doc/losses.md",
    ),
    "batch-scaling": Entry(
        OBJECTION,
        "The same images twice cost half: the loss is divided by the batch size twice.",
        "A larger batch gets smaller steps; the learning rate fits one batch size only.",
        "doc/losses.md",
    ),
    "images-mixed": Entry(
        OBJECTION,
        "Each image alone is perfect at no cost, but not together: images are compared with other "
        "images.",
        "A shape like (N, 1) meets (N,) and broadcasts to (N, N). Print the shapes.",
        "doc/losses.md",
        ("perfect-not-minimum", "minimum-not-zero", "batch-scaling", "wrong-axes"),
    ),
    "channels-mixed": Entry(
        OBJECTION,
        "Each channel alone is perfect at no cost, but not together: channels are compared with "
        "the masks of other channels.",
        "No output is right for all masks at once, so the network learns none. Print the shapes.",
        "doc/losses.md",
        (*WORSE_IS_CHEAPER, "wrong-axes"),
    ),
    "wrong-axes": Entry(
        OBJECTION,
        "The sums run over the wrong axes.",
        "Dice compares areas, so the sums must run over the height and the width of a plane, "
        "dim=(2, 3); the batch or the channels may be added, but cannot replace them.",
        "doc/losses.md",
    ),
    "scrambled": Entry(
        OBJECTION,
        "The sums run over pixels that do not belong together: view or reshape cuts the tensor "
        "across its channels.",
        "reshape(-1, C) of (N, C, H, W) does not give one column per channel. "
        "Use movedim(1, -1) before it, or sum over dim=(2, 3).",
        "doc/losses.md",
        ("wrong-axes",),
    ),
    # ---- not finite ----
    "missing-smoothing": Entry(
        OBJECTION,
        "0 / 0: an empty mask with an empty output gives NaN.",
        "Most images lack some class. One NaN makes all weights NaN. Add a small number to the "
        "denominator.",
        "doc/losses.md#on-a-channel-without-the-class",
        ("not-finite",),
    ),
    "log-of-zero": Entry(
        OBJECTION,
        "log(0): a confident output gives inf or NaN.",
        "In float32 a sigmoid is exactly 1 from a logit of 17 on. Use "
        "binary_cross_entropy_with_logits or logsigmoid, or clamp the probability.",
        "doc/losses.md",
        ("gradient-not-finite", "not-finite", "missing-smoothing"),
    ),
    "overflow": Entry(
        OBJECTION,
        "An output of 100 gives inf or NaN: exp() overflows.",
        "In float32 exp(89) is inf, and inf / inf is NaN. Use torch.sigmoid and softmax, which "
        "take any number.",
        "doc/losses.md",
        ("gradient-not-finite", "not-finite"),
    ),
    "not-finite": Entry(
        OBJECTION,
        "The loss is inf or NaN on an ordinary output.",
        "One such value makes all weights NaN.",
        "doc/pitfalls.md#mistake-6-mse-on-coco",
        ("gradient-not-finite",),
    ),
    "gradient-not-finite": Entry(
        OBJECTION,
        "The value is finite, but its gradient is inf or NaN.",
        "After one step all weights are NaN. Usual cause: the root or a fractional power of 0.",
        "doc/pitfalls.md#mistake-6-mse-on-coco",
        ("gradient-wrong", "gradient-at-perfect"),
    ),
    # ---- a file that does not behave (found by the process around it) ----
    "takes-too-long": Entry(
        OBJECTION,
        "The time limit passed: a loop without end, or code that trains when it is imported.",
        'Put what should not run at an import under if __name__ == "__main__":.',
        "doc/check-loss.md",
    ),
    "exits": Entry(
        OBJECTION,
        "The code ends the whole program: sys.exit(), exit() or os._exit().",
        "It would end a training, too. Raise an error instead.",
        "doc/check-loss.md",
    ),
    "prints-a-flood": Entry(
        OBJECTION,
        "The code prints without end.",
        "In training the log becomes unreadable and the disk full. Delete the print.",
        "doc/check-loss.md",
    ),
    "needs-too-much-memory": Entry(
        OBJECTION,
        "The memory limit was reached.",
        "Training would end with an out-of-memory error.",
        "doc/check-loss.md",
    ),
    "crashes": Entry(
        OBJECTION,
        "The process ended without a result.",
        "Training would end in the same way.",
        "doc/check-loss.md",
    ),
    # ---- remarks ----
    "zero-one-masks": Entry(
        REMARK,
        "It is meant for masks of 0 and 1.",
        "The data set has masks of 50 to 250, or 255. Pass (mask > 0).float(), or give the loss "
        "the attribute logits = True if it takes logits: training then converts the masks.",
        "doc/losses.md#which-one-when",
    ),
    "outputs-of-one": Entry(
        REMARK,
        "It takes masks of any values, but wants outputs of 0 and 1.",
        "The thresholds of this package are half the mask's value, 25 to 125: an output of 1 marks "
        "no pixel. Compare with the mask itself, or use logits.",
        "doc/masks.md",
    ),
    "masks-of-255": Entry(
        REMARK,
        "It is meant for masks of 0 and 255.",
        "On the shapes, with masks of 50 to 250, it is wrong: mask / 255 gives 0.2 to 0.98, and a "
        "threshold can lose classes.",
        "doc/masks.md",
    ),
    "takes-logits": Entry(
        REMARK,
        "It takes logits, but does not say so.",
        "Give the class or function the attribute logits = True. Training then passes masks of 0 "
        "and 1, and a pixel counts as object where its output is above 0.",
        "doc/your-own.md#your-own-loss",
    ),
    "unbounded-outputs": Entry(
        REMARK,
        "It is meant for probabilities, 0 to 1: outside this range a wrong output can cost less.",
        "The networks of this package return any number. Apply a sigmoid to the output first.",
        "doc/losses.md#three-losses-called-dice",
    ),
    "one-hot-masks": Entry(
        REMARK,
        "It is meant for one class per pixel, with a channel for the background.",
        "The shapes have no plane for the background: add one, 1 minus the others, and a channel "
        "to the network.",
        "doc/masks.md",
    ),
    "class-number-masks": Entry(
        REMARK,
        "It is meant for masks of class numbers, not for one plane per class.",
        "The data set has planes (N, C, H, W). Make numbers from them: 0 for background, k + 1 "
        "for plane k; the network then needs C + 1 channels.",
        "doc/masks.md",
    ),
    "empty-channels-unpunished": Entry(
        REMARK,
        "On a channel without the class the gradient is zero, whatever the output is.",
        "False positives there are never removed. Add a term that sees every pixel, such as MSE "
        "or cross entropy.",
        "doc/pitfalls.md#mistake-5-empty-channels-under-squared-dice",
    ),
    "no-gradient-if-empty": Entry(
        REMARK,
        "If no mask of the batch has an object, the result is a constant without a gradient.",
        "backward() then stops with an error. Return output.sum() * 0 instead of a constant.",
        "doc/losses.md",
    ),
    "sums-over-the-batch": Entry(
        REMARK,
        "Twice the images cost twice as much: it sums over the batch, or divides by a fixed "
        "batch size.",
        "The learning rate depends on the batch size, and the last, smaller batch costs less.",
        "doc/losses.md",
    ),
    "background-left-out": Entry(
        REMARK,
        "Channel 0 does not count.",
        "Right if it is the background. In the shapes it is the rectangle, which would never be "
        "learned.",
        "doc/masks.md",
    ),
    "fixed-size": Entry(
        REMARK,
        "It works for some sizes only.",
        "Another batch size, number of classes or image size raises an error. Take them from "
        "output.shape.",
        "doc/losses.md",
    ),
    "minimum-not-zero": Entry(
        REMARK,
        "A perfect output does not cost 0.",
        "Do not compare its values with those of other losses.",
        "doc/losses.md",
    ),
    "gradient-at-perfect": Entry(
        REMARK,
        "At an output that is exactly perfect the gradient is not finite.",
        "Rare in training, but possible on an empty channel: one NaN makes all weights NaN. Add a "
        "small number under the root or power.",
        "doc/losses.md",
    ),
    "weight-detached": Entry(
        REMARK,
        "A factor of the loss is detached: the gradient is not exactly the slope of the value.",
        "Often on purpose, as the weight of a focal loss.",
        "doc/losses.md",
    ),
    "float32-only": Entry(
        REMARK,
        "It fails in another precision.",
        "Training in bf16 hands the output over as float32, so it does no harm here.",
        "doc/your-own.md",
    ),
    "cpu-tensors": Entry(
        REMARK,
        "It makes a tensor on the CPU and combines it with the output.",
        "On a GPU this raises an error. Write torch.zeros(..., device=output.device).",
        "doc/your-own.md",
    ),
    "float-masks-only": Entry(
        REMARK,
        "With masks of uint8, as the data set has them, the value is different or it fails.",
        "Training converts masks to float first. In a loop of your own do the same.",
        "doc/masks.md",
    ),
    "slow": Entry(
        REMARK,
        "It is slow, perhaps because of loops in Python instead of sums over axes.",
        "Each iteration waits for it. Reduce over axes: .mean(dim=(2, 3)).",
        "README.md#speed",
    ),
    "prints": Entry(
        REMARK,
        "It prints.",
        "A line per iteration hides the log.",
        "doc/your-own.md",
    ),
}  # fmt: skip

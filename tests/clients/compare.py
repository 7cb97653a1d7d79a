# Compares losses; the report's names; the same model trained several times (mistake or not)
import torch, numpy as np, copy, matplotlib.pyplot as plt
from SegStudio import *
import torch.nn as nn
torch.manual_seed(3)
dls = SegStudio(dataroot="./data/PurdueShapes5MultiObject/PurdueShapes5MultiObject-", image_size=(64, 64), path_saved_model="./saved_model",
                momentum=0.9, learning_rate=1e-4, epochs=1, batch_size=6,
                classes=('rectangle', 'triangle', 'disk', 'oval', 'star'), use_gpu=True)
S = SegStudio.SemanticSegmentation
seg = S(dl_studio=dls, max_num_objects=5)
tr = S.PurdueShapes5MultiObjectDataset(dls, seg, 'train', "20-train.gz")
te = S.PurdueShapes5MultiObjectDataset(dls, seg, 'test', "20-test.gz")
seg.load_PurdueShapes5MultiObject_dataset(tr, te)
fig, ax = plt.subplots()
model = seg.mUnet(skip_connections=True, depth=2)
for name, scale in (("MSE", 1), ("Dice", 1), ("Combined", 200), ("Combined", 300)):
    history = seg.custom_run_code_for_training_for_semantic_segmentation(model, name, scale, log_every=1)
    ax.plot(history.losses, label=f"{name} {scale}")
ax.legend(); fig.savefig("compare.png")

class Weighted(nn.Module):
    """Loops over classes with weights kept in a buffer"""
    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.tensor([1., 1., 2., 1., 3.]))
    def forward(self, output, mask):
        return sum(w * nn.functional.mse_loss(output[:, c], mask[:, c]) for c, w in enumerate(self.w)) / 5
seg.custom_run_code_for_training_for_semantic_segmentation(seg.mUnet(depth=2), criterion=Weighted())
seg.custom_run_code_for_training_for_semantic_segmentation(seg.mUnet(depth=2), criterion=nn.SmoothL1Loss())
seg.custom_run_code_for_training_for_semantic_segmentation(seg.mUnet(depth=2), criterion=nn.BCEWithLogitsLoss())
net = seg.mUnet(depth=2)
net.load_state_dict(torch.load("./saved_model"))
seg.run_code_for_testing_semantic_segmentation(net)
for i, data in enumerate(seg.test_dataloader):
    im, m, bb = data['image'], data['mask_tensor'], data['bbox_tensor']
    with torch.no_grad():
        out = net(im)
    dls.display_tensor_as_image(im[0] / 255)
    dls.display_tensor_as_image((out[0, 0] - out[0, 0].min()) / (out[0, 0].max() - out[0, 0].min()))
print("all done")
